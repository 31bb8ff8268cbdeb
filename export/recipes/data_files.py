"""The rows of a recipe by use: probe, selection, calibration, test. Rows for everything are split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bakeout.export.recipes.recipe import DataFiles
from bakeout.models.data.row_content import RowContent, row_contents
from bakeout.models.data.row_layouts import Column, with_columns
from bakeout.models.data.row_source import DataError, RowsInMemory, Source, source_lines, source_name
from bakeout.models.data.rows import json_rows
from bakeout.models.data.uses import Use
from bakeout.models.plan import counted

# Percentages of the rows that serve for everything.
SHARES: Mapping[Use, int] = {"probe": 45, "selection": 15, "calibration": 20, "test": 20}


def by_use(data: Mapping[str, DataFiles]) -> dict[str, dict[Use, Source]]:
    """Per name the rows by use. Rows that serve for everything are split.

    Which part a row falls to depends on its text alone, so that rows keep their part when others come and go; rows that
    ask the same fall to one part, that of the first of them. Raises ``DataError`` where a file cannot be read, or there
    are too few rows for every part to get one.
    """
    return {
        name: {use: _read(source, f"{name} ({use})", files.columns) for use, source in files.by_use().items()}
        if files.file is None
        else _split(_read(files.file, name, files.columns))
        for name, files in data.items()
    }


def _read(source: Source, name: str, columns: Mapping[Column, str] | None) -> Source:
    """The rows under the name of their data, and with the columns of that; a file without such stays a file."""
    named = source if isinstance(source, Path) else replace(source, name=name)
    if not columns:
        return named
    rows = [(where, with_columns(row, columns, where)) for where, row in json_rows(named)]
    lines = tuple(json.dumps(row, ensure_ascii=False).encode() for _, row in rows)
    return RowsInMemory(source_name(named), lines, tuple(where for where, _ in rows))


def _split(source: Source) -> dict[Use, Source]:
    rows: dict[Use, list[tuple[str, bytes]]] = {use: [] for use in SHARES}
    use_of_question: dict[str, Use] = {}
    contents = list(row_contents(source))
    for content, (where, line) in zip(contents, source_lines(source), strict=True):
        use = use_of_question.setdefault(content.question, _use_of(line.strip()))
        rows[use].append((where, line))
    if not all(rows.values()):
        raise _too_few(source, contents)
    return {
        use: RowsInMemory(
            f"{source_name(source)} ({use})", tuple(line for _, line in part), tuple(where for where, _ in part)
        )
        for use, part in rows.items()
    }


def _too_few(source: Source, contents: Sequence[RowContent]) -> DataError:
    """Why the rows cannot be split. Rows in an unknown layout say nothing, so all of them seem to ask the same."""
    if silent := [content.where for content in contents if not content.question]:
        return DataError(
            f"{silent[0]}: the row has nothing in prompt, text or messages.",
            "Give each row one of them; a recipe's `columns` name other keys.",
        )
    questions = counted(len({content.question for content in contents}), "question")
    return DataError(
        f"{source_name(source)}: {questions} in {counted(len(contents), 'row')}, too few to split into "
        f"{', '.join(SHARES)}: rows that ask the same stay together.",
        "Give rows that ask more, or a file for each use.",
    )


def _use_of(row: bytes) -> Use:
    bucket = int.from_bytes(hashlib.sha256(row).digest()[:8], "big") % 100
    for use, share in SHARES.items():
        if bucket < share:
            return use
        bucket -= share
    raise AssertionError("the shares do not add up to 100")
