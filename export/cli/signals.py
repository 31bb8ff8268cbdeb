"""Signals that end a command: Ctrl-C, SIGTERM, and SIGHUP when a terminal closes. Loads nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bakeout.models.files.temporary import discard_all

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
# The one that came last.
_received: list[int] = []
_show_unraisable = sys.unraisablehook


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let each of the signals end the block as an error does, so that nothing half-written stays.

    The process then exits with 128 + the signal's number, and says so in a line. A signal that is ignored, as under
    ``nohup``, stays ignored.
    """
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        sys.unraisablehook = _unraisable
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted()
    except Exception:
        # Libraries that are being imported turn an interruption into errors of their own.
        if not _received:
            raise
        _say_interrupted()


def _interrupt(number: int, frame: object) -> NoReturn:
    _received[:] = [number]
    raise KeyboardInterrupt


def _say_interrupted() -> NoReturn:
    if sys.stderr is not None:
        print("interrupted", file=sys.stderr, flush=True)
    sys.exit(_status())


def _status() -> int:
    return 128 + (_received[-1] if _received else signal.SIGINT)


def _unraisable(error: sys.UnraisableHookArgs) -> None:
    """End where Python would show an interruption and go on: in a destructor, a callback, or at its own exit."""
    if issubclass(error.exc_type, KeyboardInterrupt):
        discard_all()
        os._exit(_status())
    _show_unraisable(error)
