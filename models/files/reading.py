"""Files as they are read: regular ones alone, since a FIFO never ends and a device has no end."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from bakeout.models.errors import BakeoutError

# Far more than any file has that is meant to be read here.
_DEEPEST, _LONGEST_NUMBER = 100, 300
# What a repository that was cloned without Git LFS holds in place of large files begins so.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def open_regular(path: Path) -> BufferedReader:
    """A regular file, or what links to one, opened for reading. Raises ``OSError`` for all else, and never waits.

    Raises ``BakeoutError`` for a pointer of Git LFS, which stands for a file that was not downloaded.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a directory" if stat.S_ISDIR(mode) else "not a regular file", str(path))
    file = os.fdopen(descriptor, "rb")
    if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
        file.close()
        raise BakeoutError(f"{path} is a Git LFS pointer, not the file itself.", "Run `git lfs pull` where it lies.")
    return file


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises as ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def require_no_devices(directory: Path) -> None:
    """Raise ``BakeoutError`` where something in ``directory`` would be read for ever: a FIFO, a socket, a device.

    For directories whose files other libraries open. Links that lead nowhere are those libraries' to refuse.
    """
    for path in sorted(directory.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BakeoutError(f"{path} is not a regular file.", "Copy the model again.")


def may_be_cut_line(tail: bytes, start: bytes) -> bool:
    """Whether ``tail``, what a file has behind its last line end, may be a line of JSON that was cut while written.

    All lines begin with ``start``: what begins otherwise is another file's. A whole document was not cut, or lost its
    line end alone, so the caller has to read it as a line.
    """
    if not (tail.startswith(start) or start.startswith(tail)):
        return False
    try:
        parse_json(tail.decode("utf-8"), half_pairs=True)
    except ValueError:
        return True
    return False


def parse_json(text: bytes | str, *, finite: bool = False, half_pairs: bool = False) -> Any:
    """A JSON document. Raises ``ValueError``, and nothing else, for what is none.

    That is what nests too deeply, too, what holds half of a surrogate pair (no file can hold it as text), and a number
    that no float holds. With ``finite``, NaN and infinite numbers are refused, which JSON does not have but Python
    reads. ``half_pairs``: half of a surrogate pair is read, as which Python holds a byte of a file's name that is no
    UTF-8.
    """
    try:
        content = json.loads(text, parse_int=_integer, parse_constant=_refuse_constant if finite else None)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    _require_shallow(content)
    if not half_pairs and _may_hold_surrogates(text):
        json.dumps(content, ensure_ascii=False).encode()
    if finite:
        json.dumps(content, allow_nan=False)
    return content


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _require_shallow(content: Any) -> None:
    """Raise ``ValueError`` for what no function that calls itself, level by level, could follow to its end."""
    level = [content] if isinstance(content, (dict, list)) else []
    for _ in range(_DEEPEST):
        level = [
            value
            for container in level
            for value in (container.values() if isinstance(container, dict) else container)
            if isinstance(value, (dict, list))
        ]
        if not level:
            return
    raise ValueError("it nests too deeply")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _may_hold_surrogates(text: bytes | str) -> bool:
    return (b"\\ud" in text.lower()) if isinstance(text, bytes) else ("\\ud" in text.lower() or not text.isascii())
