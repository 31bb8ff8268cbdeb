"""Room on a disk: what is free, and what files take up."""

from __future__ import annotations

import shutil
from pathlib import Path

from bakeout.models.errors import BakeoutError
from bakeout.models.files.temporary import outside

# The unit of st_blocks.
_BLOCK = 512


def require_space(directory: Path, size: int) -> None:
    """Raise ``BakeoutError`` unless the file system of ``directory`` has room for ``size`` more bytes."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise BakeoutError(
            f"{outside(directory)} has {gigabytes(free)} free, and {gigabytes(size)} are needed.",
            "Make room, or name an output on another disk.",
        )


def room_on_disk(path: Path) -> int:
    """The bytes that a file takes up on its disk: less than its size where it has holes."""
    status = path.stat()
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * _BLOCK)


def gigabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
