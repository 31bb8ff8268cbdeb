"""How many processes were started together, by torchrun or accelerate launch. Read without torch."""

from __future__ import annotations

import os

from bakeout.models.errors import BakeoutError


def launched_processes() -> int:
    """How many there are; 1 where this process was started by itself, whatever ``WORLD_SIZE`` is left over.

    A launcher gives each process its rank too. Raises ``BakeoutError`` for a ``WORLD_SIZE`` that is no number.
    """
    if not os.environ.get("RANK"):
        return 1
    said = os.environ.get("WORLD_SIZE") or "1"
    if not said.isdecimal() or int(said) == 0:
        raise BakeoutError(f"WORLD_SIZE is {said!r}, no number of processes.", "Unset it, or start with torchrun.")
    return int(said)
