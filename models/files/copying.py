"""Files copied by the kernel: not through Python's memory, holes kept."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Errors of copy_file_range on some file systems: not between these two, not on this kind of file.
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_CHUNK = 1 << 24


def copy_by_kernel(source: Path, target: Path) -> None:
    """Copy a file's content without reading it into Python; file systems that can share blocks do, and holes stay.

    Symbolic links are followed. Never a hard link: the base model's file must not change with the artifact's, and
    onnx_ir refuses to read linked data.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        if hasattr(os, "copy_file_range"):
            for start, end in _extents(reader.fileno(), size):
                _copy_extent(reader, writer, start, end)
            writer.truncate(size)
        else:
            shutil.copyfileobj(reader, writer, _CHUNK)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data: start and end of each stretch between its holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _copy_extent(reader: BinaryIO, writer: BinaryIO, start: int, end: int) -> None:
    while start < end:
        try:
            copied = os.copy_file_range(reader.fileno(), writer.fileno(), end - start, start, start)
        except OSError as error:
            if error.errno not in _NOT_BY_KERNEL:
                raise
            copied = _copy_by_hand(reader, writer, start, end)
        if copied == 0:
            raise OSError(errno.EIO, "the file shrank while it was copied", reader.name)
        start += copied


def _copy_by_hand(reader: BinaryIO, writer: BinaryIO, start: int, end: int) -> int:
    chunk = os.pread(reader.fileno(), min(_CHUNK, end - start), start)
    return os.pwrite(writer.fileno(), chunk, start)
