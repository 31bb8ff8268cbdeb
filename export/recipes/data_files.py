"""The data files of a recipe by use: probe, selection, calibration, test. Files for everything are parted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bakeout.export.recipes.recipe import DataFiles
from bakeout.models.data.rows import DataError

# Percentages of the rows of a file that serves for everything.
SHARES = {"probe": 45, "selection": 15, "calibration": 20, "test": 20}


def by_use(data: Mapping[str, DataFiles], scratch: Path) -> dict[str, dict[str, Path]]:
    """Per name the files by use. Files that serve for everything are parted into files below ``scratch``.

    Which part a row falls to depends on its text alone, so that rows keep their part when others come and go.
    Raises ``DataError`` where a file cannot be read, or is too small for every part to get a row.
    """
    return {
        name: files.named() if files.file is None else _part(files.file, scratch / f"{index}")
        for index, (name, files) in enumerate(data.items())
    }


def _part(path: Path, directory: Path) -> dict[str, Path]:
    rows: dict[str, list[bytes]] = {use: [] for use in SHARES}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    for line in lines:
        if line.strip():
            rows[_use_of(line.strip())].append(line)
    directory.mkdir()
    parts = {}
    for use, chosen in rows.items():
        if not chosen:
            raise DataError(
                f"{path}: too few rows to part into {', '.join(SHARES)}.", "Give more rows, or a file for each use."
            )
        parts[use] = directory / f"{path.stem}.{use}.jsonl"
        parts[use].write_bytes(b"\n".join(chosen) + b"\n")
    return parts


def _use_of(row: bytes) -> str:
    bucket = int.from_bytes(hashlib.sha256(row).digest()[:8], "big") % 100
    for use, share in SHARES.items():
        if bucket < share:
            return use
        bucket -= share
    raise AssertionError("the shares do not add up to 100")
