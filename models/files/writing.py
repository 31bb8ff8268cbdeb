"""The one way in which a file or a directory is written: whole or not at all.

What is written grows in a temporary directory beside its target, is forced to the disk, and becomes the target by one
rename. Whatever fails, nothing is left: neither the temporary directory nor parents that were created for it. Files
inside a ``new_directory`` may be written plainly, for they appear with it.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bakeout.models.errors import BakeoutError
from bakeout.models.files.artifact_names import MANIFEST
from bakeout.models.files.temporary import outside, remove_abandoned, temporary_directory

# Bytes, text, or bytes in parts.
Content = bytes | str | Iterable[bytes | memoryview]

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
# What is written, in its temporary directory.
_NEW = "new"
_WRITABLE = "tried"
# numpy's error for a file that takes a part alone; it has no number.
_CUT = re.compile(r"\d+ requested and \d+ written")
# Errors of libraries in Rust, and of many files at once.
_TOLD = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")


def require_new(path: Path) -> None:
    """Raise ``BakeoutError`` unless something new can be written at ``path``. Call it before long work begins.

    Whatever is there is refused, a symbolic link that leads nowhere too: nothing is written through it. So is a place
    in an artifact, and one that cannot be written to, which is tried: a file system that is read-only or full, a
    directory without permission.
    """
    _require_free(path)
    with disk_errors(path):
        _try_to_write(path.absolute().parent, _prefix(path))


def require_writable(directory: Path) -> None:
    """Raise ``BakeoutError`` unless files can be written in ``directory``, which need not be there yet."""
    with disk_errors(directory):
        _try_to_write(directory.absolute(), f".{_WRITABLE}")


def require_own_directory(directory: Path) -> None:
    """The same of a directory of one's own: in an artifact, whose manifest lists its files, it is refused."""
    _require_outside_artifacts(directory / MANIFEST)
    require_writable(directory)


def _try_to_write(directory: Path, prefix: str) -> None:
    place = next(parent for parent in (directory, *directory.parents) if os.path.lexists(parent))
    if not place.is_dir():
        raise BakeoutError(f"{place} is not a directory, so nothing can be written below it.", "Name another output.")
    try:
        with temporary_directory(place, prefix) as scratch:
            _write_through(scratch / _NEW, b"1")
    except FileNotFoundError:
        # Some file systems of the kernel's own answer so.
        raise BakeoutError(f"Nothing can be made in {place}.", "Name another output.") from None


def forget_killed(path: Path) -> None:
    """Remove what a process that was killed left beside ``path`` when it wrote there. Done by every later write too."""
    if path.parent.is_dir():
        with disk_errors(path):
            remove_abandoned(path.parent, _prefix(path))


def write_file(path: Path, content: bytes | str) -> None:
    """Write a new file; text as UTF-8. Its parents are created where they are missing.

    Raises ``BakeoutError``, leaving nothing behind, where ``path`` exists (``require_new``) and where the disk is full
    or refuses.
    """
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes | str]) -> None:
    """``write_file`` for files that belong together: all appear, or none, whatever fails."""
    with ExitStack() as scratches:
        new = {}
        for path, content in contents.items():
            _require_free(path)
            new[path] = scratches.enter_context(_beside(path)) / _NEW
            _write_through(new[path], content)
        try:
            for path in new:
                _put(new[path], path)
        except BaseException:
            for path in new:
                with suppress(OSError):
                    if path.samefile(new[path]):
                        path.unlink()
            raise


def replace_file(path: Path, content: Content) -> None:
    """``write_file``, in the place of the file or symbolic link that may lie there. Either the old one is there or the
    new one, at any time. Content in parts is never in memory as a whole.
    """
    with _beside(path) as scratch:
        _write_through(scratch / _NEW, content)
        (scratch / _NEW).replace(path)


def replace_files(directory: Path, contents: Mapping[str, bytes | str], without: Collection[str] = ()) -> None:
    """``replace_file`` for files of one directory, by name, and removal of those ``without``.

    Nothing changes until the whole content is on the disk. Then files vanish, and the new ones appear in their order:
    a process that is killed there leaves some of them. Its temporary directory is that of the last file.
    """
    with _beside(directory / list(contents)[-1]) as scratch:
        for number, content in enumerate(contents.values()):
            _write_through(scratch / f"{_NEW}-{number}", content)
        for name in without:
            (directory / name).unlink(missing_ok=True)
        for number, name in enumerate(contents):
            (scratch / f"{_NEW}-{number}").replace(directory / name)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``path`` when the block ends, and vanishes when the block fails.

    Raises ``BakeoutError`` before anything is written where ``path`` exists (``require_new``), and later where the disk
    is full or refuses, in the block too.
    """
    _require_free(path)
    with _beside(path) as scratch:
        directory = scratch / _NEW
        directory.mkdir()
        yield directory
        _force_to_disk(directory)
        _put(directory, path)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """``new_directory``, in the place of the directory that may lie there, which stays if the block fails."""
    if not path.is_dir():
        with new_directory(path) as directory:
            yield directory
        return
    _require_outside_artifacts(path)
    path = path.resolve()
    with _beside(path) as scratch:
        directory, earlier = scratch / _NEW, scratch / "earlier"
        directory.mkdir()
        yield directory
        _force_to_disk(directory)
        path.rename(earlier)
        try:
            directory.rename(path)
        except BaseException:
            if not path.exists():
                earlier.rename(path)
            raise


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory that vanishes when the block ends: in ``parent``, or among the system's temporary files.

    Raises ``BakeoutError`` where the disk is full or refuses, in the block too.
    """
    try:
        parent = parent or Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise BakeoutError("There is no directory for temporary files.", "Name one in TMPDIR.") from error
    with disk_errors(parent), temporary_directory(parent, "scratch") as scratch:
        yield scratch


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise as ``BakeoutError`` why the disk does not take ``path``: full, read-only, not permitted, broken."""
    try:
        yield
    except Exception as error:
        number, place = _number(error), outside(Path(str(getattr(error, "filename", None) or path)))
        path = outside(path)
        is_beside = place == path.absolute().parent
        if number in _FULL:
            raise BakeoutError(
                f"{path} cannot be written: {os.strerror(number)}.", "Make room, or name an output on another disk."
            ) from error
        if number == errno.EFBIG:
            raise BakeoutError(
                f"{path} cannot be written: {os.strerror(number)}.",
                "Raise the limit of file sizes (ulimit -f), or name an output on another disk.",
            ) from error
        if number in _REFUSED:
            raise BakeoutError(
                f"{path if is_beside else place} cannot be read or written: {os.strerror(number)}.",
                "Check the path, its permissions and the disk.",
            ) from error
        raise


def _number(error: Exception) -> int:
    """The number of what the system refused, 0 where it did not. Libraries tell it in their errors' text, if at all."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OSError) and _CUT.search(str(error)):
        return errno.ENOSPC
    told = None if isinstance(error, BakeoutError) else _TOLD.search(str(error))
    return int(told[1] or told[2]) if told else 0


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A directory beside ``path``, for the block to write what is renamed; nothing stays of it, nor of new parents."""
    target = path.absolute()
    new_parents = [parent for parent in target.parents if not os.path.lexists(parent)]
    try:
        with disk_errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary_directory(target.parent, _prefix(path)) as scratch:
                yield scratch
                for changed in {target.parent, *(parent.parent for parent in new_parents)}:
                    _sync(changed)
    except BaseException:
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise


def _prefix(path: Path) -> str:
    """How the names of temporary directories beside ``path`` begin."""
    return f".{path.name[:_NAME]}"


def _require_outside_artifacts(path: Path) -> None:
    """Raise ``BakeoutError`` for a new file in an artifact, whose manifest lists all that belongs there."""
    with disk_errors(path):
        for directory in Path(os.path.realpath(path)).parents:
            if (directory / MANIFEST).is_file():
                raise BakeoutError(
                    f"{path} lies in the artifact {directory}, whose manifest and signature it would break.",
                    "Name a place outside of it.",
                )


def _require_free(path: Path) -> None:
    _require_outside_artifacts(path)
    with disk_errors(path), suppress(FileNotFoundError):
        path.lstat()
        raise _taken(path)


def _put(new: Path, path: Path) -> None:
    """Give what lies at ``new`` the name ``path``, unless another process was faster."""
    _require_free(path)
    try:
        if new.is_dir():
            new.rename(path)
        else:
            _link(new, path)
    except OSError as error:
        if os.path.lexists(path):
            raise _taken(path) from error
        raise


def _link(new: Path, path: Path) -> None:
    try:
        path.hardlink_to(new)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        new.rename(path)


def _taken(path: Path) -> BakeoutError:
    return BakeoutError(f"{path} exists already.", "Name another output, or remove it first.")


def _write_through(path: Path, content: Content) -> None:
    whole = content.encode() if isinstance(content, str) else content
    with path.open("xb") as file:
        for part in [whole] if isinstance(whole, bytes) else whole:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _force_to_disk(directory: Path) -> None:
    for path in (*sorted(directory.rglob("*")), directory):
        _sync(path)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # directories cannot be opened there, and need not be
        return
    # Windows syncs what is open for writing; elsewhere the file may be read-only.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
