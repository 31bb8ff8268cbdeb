"""The rows of a recipe by use: probe, selection, calibration, test. Rows for everything are split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bakeout.export.recipes.recipe import DataFiles
from bakeout.models.data.row_source import DataError, RowsInMemory, Source, source_lines, source_name
from bakeout.models.data.uses import Use

# Percentages of the rows that serve for everything.
SHARES: Mapping[Use, int] = {"probe": 45, "selection": 15, "calibration": 20, "test": 20}


def by_use(data: Mapping[str, DataFiles]) -> dict[str, dict[Use, Source]]:
    """Per name the rows by use. Rows that serve for everything are split.

    Which part a row falls to depends on its text alone, so that rows keep their part when others come and go.
    Raises ``DataError`` where a file cannot be read, or there are too few rows for every part to get one.
    """
    return {
        name: {use: _named(source, f"{name} ({use})") for use, source in files.by_use().items()}
        if files.file is None
        else _split(_named(files.file, name))
        for name, files in data.items()
    }


def _named(source: Source, name: str) -> Source:
    return source if isinstance(source, Path) else replace(source, name=name)


def _split(source: Source) -> dict[Use, Source]:
    rows: dict[Use, list[bytes]] = {use: [] for use in SHARES}
    for _, line in source_lines(source):
        rows[_use_of(line.strip())].append(line)
    if not all(rows.values()):
        raise DataError(
            f"{source_name(source)}: too few rows to split into {', '.join(SHARES)}.",
            "Give more rows, or some for each use.",
        )
    return {use: RowsInMemory(f"{source_name(source)} ({use})", tuple(lines)) for use, lines in rows.items()}


def _use_of(row: bytes) -> Use:
    bucket = int.from_bytes(hashlib.sha256(row).digest()[:8], "big") % 100
    for use, share in SHARES.items():
        if bucket < share:
            return use
        bucket -= share
    raise AssertionError("the shares do not add up to 100")
