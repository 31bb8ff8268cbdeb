"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Let glibc give back what forward passes have freed: it keeps blocks of up to 32 MiB for later ones.

    Without it a fit holds what its probing, its choices and its canary need together.
    """
    if sys.platform == "linux":
        # Other C libraries have no such function.
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
