"""SHA-256 of files, streamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bakeout.models.files.reading import open_regular

_AT_ONCE = 4


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a regular file's content."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Sequence[Path]) -> Iterator[str]:
    """``hash_file`` of each, in order; as many at a time as there are processors, but no more than four."""
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        yield from pool.map(hash_file, paths)
