"""The one way in which a file or a directory is written: whole or not at all.

What is written grows under a temporary name beside its target, is forced to the disk, and becomes the target by one
rename. Whatever fails, nothing is left: neither the temporary sibling nor parents that were created for it. Files
inside a ``new_directory`` may be written plainly, for they appear with it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bakeout.models.errors import BakeoutError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.ELOOP,
)
# Leaves room for the rest of a temporary name, whatever the characters are encoded to.
_NAME = 32


def require_new(path: Path) -> None:
    """Raise ``BakeoutError`` unless something new can be written at ``path``. Call it before long work begins.

    Whatever is there is refused, a symbolic link that leads nowhere too: nothing is written through it. So is a place
    that the file system does not let us write to.
    """
    with disk_errors(path), suppress(FileNotFoundError):
        path.lstat()
        raise BakeoutError(f"{path} exists already.", "Name another output, or remove it first.")
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise BakeoutError(f"{parent} is not a directory, so nothing can be written below it.", "Name another output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BakeoutError(
            f"{path} cannot be written: there is no permission to write in {parent}.",
            "Check the permissions, or name another output.",
        )


def write_file(path: Path, content: bytes | str) -> None:
    """Write a new file; text as UTF-8. Its parents are created where they are missing.

    Raises ``BakeoutError``, leaving nothing behind, where ``path`` exists (``require_new``) and where the disk is full
    or refuses.
    """
    require_new(path)
    with _temporary_sibling(path) as temporary:
        _write_through(temporary, content)
        require_new(path)
        temporary.rename(path)


def replace_file(path: Path, content: bytes | str) -> None:
    """``write_file``, in the place of the file or symbolic link that may lie there. Either the old one is there or the
    new one, at any time.
    """
    with _temporary_sibling(path) as temporary:
        _write_through(temporary, content)
        temporary.replace(path)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``path`` when the block ends, and vanishes when the block fails.

    Raises ``BakeoutError`` before anything is written where ``path`` exists (``require_new``), and later where the disk
    is full or refuses, in the block too.
    """
    require_new(path)
    with _temporary_sibling(path) as temporary:
        temporary.mkdir()
        yield temporary
        _force_to_disk(temporary)
        require_new(path)
        temporary.rename(path)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """``new_directory``, in the place of the directory that may lie there, which stays if the block fails."""
    if not path.is_dir():
        with new_directory(path) as directory:
            yield directory
        return
    path = path.resolve()
    with _temporary_sibling(path) as temporary:
        temporary.mkdir()
        yield temporary
        _force_to_disk(temporary)
        earlier = _sibling_name(path)
        path.rename(earlier)
        try:
            temporary.rename(path)
        except BaseException:
            earlier.rename(path)
            raise
        shutil.rmtree(earlier)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise as ``BakeoutError`` why the disk does not take ``path``: full, read-only, not permitted, broken."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BakeoutError(
                f"{path} cannot be written: {error.strerror}.", "Make room, or name an output on another disk."
            ) from error
        if error.errno == errno.EFBIG:
            raise BakeoutError(
                f"{path} cannot be written: {error.strerror}.",
                "Raise the limit of file sizes (ulimit -f), or name an output on another disk.",
            ) from error
        if error.errno in _REFUSED:
            raise BakeoutError(
                f"{error.filename or path} cannot be read or written: {error.strerror}.",
                "Check the path, its permissions and the disk.",
            ) from error
        raise


@contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    """A free name beside ``path``, for the block to write to and rename; nothing stays of it where the block fails."""
    target = path.absolute()
    temporary = _sibling_name(target)
    new_parents = [parent for parent in target.parents if not os.path.lexists(parent)]
    try:
        with disk_errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            for changed in {target.parent, *(parent.parent for parent in new_parents)}:
                _sync_directory(changed)
    except BaseException:
        _remove(temporary)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise


def _sibling_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:_NAME]}.{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _write_through(path: Path, content: bytes | str) -> None:
    with path.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _force_to_disk(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there, and need not be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
