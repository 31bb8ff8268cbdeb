"""Artifacts as directories: whole or not at all, with a manifest of every file's digest. Knows nothing of models."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO

from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_files
from bakeout.models.plan.receipt import Receipt

GRAPH = "model.onnx"
DATA = "model.onnx.data"
PLAN = "plan.safetensors"
MANIFEST = "bakeout.json"
CARD = "README.md"
SCHEMA = 1

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST)
# What some file systems say to copy_file_range: not between these two, not on this kind of file.
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_CHUNK = 1 << 24
# The unit of st_blocks.
_BLOCK = 512


@contextmanager
def artifact_directory(path: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``path`` when the block ends, and vanishes when the block fails.

    It lies beside ``path``, so that becoming ``path`` is one rename; everything in it is on the disk by then. Raises
    ``BakeoutError`` before anything is written when ``path`` exists, and later when the disk is full or refuses.
    """
    path = path.absolute()
    require_new(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    temporary: Path | None = None
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:64]}.", dir=path.parent))
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _to_disk(temporary)
            require_new(path)
            temporary.rename(path)
            _sync_directory(path.parent)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what the disk has against writing ``path`` as ``BakeoutError``: full, read-only, not permitted, broken."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BakeoutError(
                f"{path} cannot be written: {error.strerror}.", "Make room, or name an output on another disk."
            ) from error
        if error.errno in _REFUSED:
            raise BakeoutError(
                f"{error.filename or path} cannot be read or written: {error.strerror}.",
                "Check the path, its permissions and the disk.",
            ) from error
        raise


def require_new(path: Path) -> None:
    """Raise ``BakeoutError`` where there is something at ``path`` already."""
    if os.path.lexists(path):
        raise BakeoutError(f"{path} exists already.", "Name another output, or remove it first.")


def require_space(directory: Path, size: int) -> None:
    """Raise ``BakeoutError`` unless the file system of ``directory`` has room for ``size`` more bytes."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise BakeoutError(
            f"{directory} has {gigabytes(free)} free, and {gigabytes(size)} are needed.",
            "Make room, or name an output on another disk.",
        )


def room_on_disk(path: Path) -> int:
    """The bytes that a file takes up on its disk: less than its size where it has holes."""
    status = path.stat()
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * _BLOCK)


def gigabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


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


def file_digests(directory: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every file below ``directory`` but the manifest: its name (with ``/``) to its ``sha256`` and ``size``.

    ``known``: the SHA-256 of files that were copied from where they were hashed, and need not be hashed again.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST]
    unknown = [name for name in names if name not in known]
    digests = {**known, **dict(zip(unknown, hash_files([directory / name for name in unknown]), strict=True))}
    return {name: {"sha256": digests[name], "size": (directory / name).stat().st_size} for name in names}


def write_manifest(
    directory: Path, entries: Mapping[str, Any], known: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write ``bakeout.json``: the digests of all files that lie in ``directory`` by now, and ``entries``.

    ``entries`` is JSON and must not hold what differs from build to build: times, paths, host names. ``known`` as of
    ``file_digests``.
    """
    manifest = {**entries, "schema": SCHEMA, "files": file_digests(directory, known)}
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact, its ``files`` and ``receipts`` checked for form. Raises ``BakeoutError``."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BakeoutError(
            f"{directory} holds no {MANIFEST}, so it is not an artifact.", "Name what `bakeout bake` or `build` wrote."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _malformed(path, str(error)) from None
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise _malformed(path, "no schema number")
    if manifest["schema"] != SCHEMA:
        raise BakeoutError(
            f"{path} has schema {manifest['schema']!r}; this Bakeout reads {SCHEMA}.",
            "Use the version of Bakeout that wrote it.",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_file_entry(name, entry) for name, entry in files.items()):
        raise _malformed(path, "`files` is not a table of digests and sizes")
    receipts = manifest.get("receipts")
    wanted = {field.name for field in fields(Receipt)}
    if not isinstance(receipts, list) or not all(isinstance(one, dict) and one.keys() == wanted for one in receipts):
        raise _malformed(path, "`receipts` is not a list of receipts")
    return manifest


def _is_file_entry(name: str, entry: Any) -> bool:
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return (
        inside
        and isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))) is not None
    )


def _malformed(path: Path, why: str) -> BakeoutError:
    return BakeoutError(f"{path} is not a manifest ({' '.join(why.split())}).", "Copy or bake the artifact again.")


def _to_disk(directory: Path) -> None:
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


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
