"""An artifact's files: regular ones, those of the manifest and no others, as they were written."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_names import MANIFEST, SIGNATURE
from bakeout.models.files.hashing import hash_files
from bakeout.models.files.links import leads_to_blob
from bakeout.models.progress import Track

_LINK = "a link"


def links_out(directory: Path) -> list[str]:
    """The links below ``directory``, by their names with ``/``, that stand for no file of a hub's cache."""
    return [name for name, what in irregular_entries(directory).items() if what == _LINK]


def irregular_entries(directory: Path) -> Mapping[str, str]:
    """What no artifact holds, by its name with ``/``: links, empty directories, FIFOs, sockets and devices.

    The links of a hub's cache, which lead from ``snapshots`` to its ``blobs``, stand for their files.
    """
    return dict(_irregular(directory, directory))


def compare_files(
    directory: Path, files: Mapping[str, Any], track: Track, *, beside: Collection[str] = ()
) -> tuple[bool, str]:
    """Whether the files are those that the manifest lists, sizes first; only files of the right size are hashed.

    Files named ``beside`` may lie there too.
    """
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    problems: defaultdict[str, list[str]] = defaultdict(list)
    problems["missing"] = sorted(files.keys() - present)
    problems["not in the manifest"] = sorted(present - files.keys() - {MANIFEST, SIGNATURE, *beside})
    same_size: list[str] = []
    for name in sorted(files.keys() & present):
        is_same = (directory / name).stat().st_size == files[name]["size"]
        (same_size if is_same else problems["changed"]).append(name)
    digests = track(hash_files([directory / name for name in same_size]), "hashing the files", len(same_size))
    problems["changed"] += [
        name for name, digest in zip(same_size, digests, strict=True) if digest != files[name]["sha256"]
    ]
    told = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names)
    return not told, told or f"{len(files)} files as in {MANIFEST}"


def _irregular(directory: Path, top: Path) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    if not entries and directory != top:
        yield directory.relative_to(top).as_posix(), "an empty directory"
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            if not (path.is_file() and leads_to_blob(path, top)):
                yield path.relative_to(top).as_posix(), _LINK
        elif entry.is_dir():
            yield from _irregular(path, top)
        elif not entry.is_file():
            yield path.relative_to(top).as_posix(), "not a regular file"
