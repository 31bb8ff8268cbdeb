"""Temporary directories: each is locked while it is in use, and gone when its process ends.

A name is noted before anything lies there, so that it is removed at exit wherever a signal cuts in. What a killed
process left is not locked any more, and the next process that needs a temporary directory there removes it.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LOG = logging.getLogger(__name__)
_ENDING = re.compile(r"\.[0-9a-f]{8}\.bakeout\Z")

# The lock of each directory that this process has, and the process's id: a forked one has others.
_in_use: dict[Path, tuple[int, int | None]] = {}


@contextmanager
def temporary_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in ``parent``, for us alone, that is removed with all that lies in it when the block ends.

    Its name is ``prefix``, eight random characters and ``.bakeout``. Those of this form that killed processes left in
    ``parent`` are removed first, which a log line says. Raises ``OSError`` where none can be made.
    """
    remove_abandoned(parent, prefix)
    path = _create(parent, prefix)
    try:
        yield path
    finally:
        _discard(path)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the temporary directories ``prefix`` in ``parent`` that no process has locked: killed ones left them."""
    if sys.platform == "win32":  # where nothing is locked
        return
    form = re.compile(re.escape(prefix) + _ENDING.pattern)
    for path in [path for path in parent.iterdir() if form.fullmatch(path.name)]:
        # Whatever cannot be locked is in use, or gone, or no directory.
        with suppress(OSError):
            lock = _lock(path)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(path)
                    _LOG.info(f"removed {path}, which a killed process had left")
            finally:
                os.close(lock)


def outside(path: Path) -> Path:
    """``path`` or, within a temporary directory, what that one lies in: users know no more of it."""
    within = [place for place in (path, *path.parents) if _ENDING.search(place.name)]
    return within[-1].parent if within else path


def _create(parent: Path, prefix: str) -> Path:
    while True:
        path = parent.absolute() / f"{prefix}.{secrets.token_hex(4)}.bakeout"
        _in_use[path] = os.getpid(), None
        try:
            path.mkdir(mode=0o700)
        except BaseException:
            _discard(path)
            raise
        if sys.platform == "win32":
            return path
        try:
            _in_use[path] = os.getpid(), _lock(path)
        except (BlockingIOError, FileNotFoundError):
            # Another process takes it for abandoned, before it was locked.
            del _in_use[path]
            continue
        except OSError:
            # There are no locks on this file system, and nobody removes what cannot be locked.
            return path
        return path


def _lock(directory: Path) -> int:
    """The descriptor of a lock on ``directory``. Raises ``OSError`` where another process has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), directory.lstat()):
            raise FileNotFoundError(directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _discard(path: Path) -> None:
    # What ends with its owner, as a model's offloaded weights, may end after ``discard_all``.
    if path not in _in_use:
        return
    shutil.rmtree(path, ignore_errors=True)
    _, lock = _in_use.pop(path)
    if lock is not None:
        os.close(lock)


@atexit.register
def discard_all() -> None:
    """Remove what this process still has: a signal may have cut in where no block removes it."""
    for path, (process, _) in list(_in_use.items()):
        if process == os.getpid():
            _discard(path)
