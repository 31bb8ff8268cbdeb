"""The rows of a recipe by use: probe, selection, calibration, test. Rows for everything are split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from bakeout.export.recipes.recipe import DataFiles
from bakeout.models.data.row_content import RowContent, row_contents
from bakeout.models.data.row_layouts import Column, with_columns
from bakeout.models.data.row_source import (
    DataError,
    RowsInMemory,
    Source,
    read_once,
    source_digest,
    source_lines,
    source_name,
)
from bakeout.models.data.rows import json_rows
from bakeout.models.data.uses import Use
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import counted

# Percentages of the rows that serve for everything.
SHARES: Mapping[Use, int] = {"probe": 45, "selection": 15, "calibration": 20, "test": 20}
# The key of a row that each column is read from.
Columns = Mapping[Column, str]
# What a caller may give: columns for all data, or by name.
ColumnsLike = Mapping[Any, Any]


def read_files(data: Mapping[str, DataFiles]) -> dict[str, DataFiles]:
    """The same data with every file's rows in memory, as ``read_once`` reads them. Raises ``DataError``."""
    return {
        name: files.model_copy(update={use: read_once(source) for use, source in files.named().items()})
        for name, files in data.items()
    }


def data_digests(data: Mapping[str, DataFiles]) -> dict[str, dict[str, str]]:
    """The digests of what is given, by name and by what it is for. Raises ``DataError`` for a file not read yet."""
    return {name: {use: source_digest(source) for use, source in files.named().items()} for name, files in data.items()}


def by_use(data: Mapping[str, DataFiles]) -> dict[str, dict[Use, Source]]:
    """Per name the rows by use. Rows that serve for everything are split.

    Which part a row falls to depends on its text alone, so that rows keep their part when others come and go; rows that
    ask the same fall to one part, that of the first of them. Raises ``DataError`` where a file cannot be read, or there
    are too few rows for every part to get one.
    """
    return {
        name: {
            use: in_columns(_named(source, f"{name} ({use})"), files.columns) for use, source in files.by_use().items()
        }
        if files.file is None
        else _split(in_columns(_named(files.file, name), files.columns))
        for name, files in data.items()
    }


def columns_of(given: ColumnsLike | None, names: Sequence[str]) -> dict[str, Columns]:
    """The columns of the data ``names``, as recipes write them: for all, or by name.

    Raises ``BakeoutError`` for what names no column, or no data.
    """
    if not given:
        return {}
    by_name = given if all(isinstance(value, Mapping) for value in given.values()) else dict.fromkeys(names, given)
    if strange := [name for name in by_name if name not in names]:
        raise BakeoutError(f"No data are called {strange[0]!r}.", f"There are {', '.join(names) or 'none'}.")
    return {name: _columns(columns) for name, columns in by_name.items()}


def _columns(given: Mapping[Any, Any]) -> Columns:
    known = get_args(Column)
    if unknown := [name for name in given if name not in known]:
        raise BakeoutError(f"No column is called {unknown[0]!r}.", f"Choose among {', '.join(known)}.")
    if wrong := [name for name, key in given.items() if not isinstance(key, str)]:
        raise BakeoutError(f"`columns`: {wrong[0]} is not the key of a row.", "Give the key as text.")
    return given


def in_columns(source: Source, columns: Columns | None) -> Source:
    """The rows with each of ``columns`` from the key it names; as they are without any.

    Raises ``DataError`` for a row that lacks one, and for a ``context`` that no row has: single rows may lack it.
    """
    if not columns:
        return source
    rows = list(json_rows(source))
    context = columns.get("context")
    if context is not None and "prompt" not in columns:
        raise DataError("`columns` has a context without its prompt.", "Name the key of the prompt, too.")
    if context is not None and rows and not any(context in row for _, row in rows):
        first = ", ".join(rows[0][1])
        raise DataError(
            f"{source_name(source)}: no row has {context!r}.", f"Correct `columns`: the first row has {first}."
        )
    renamed = [json.dumps(with_columns(row, columns, where), ensure_ascii=False).encode() for where, row in rows]
    return RowsInMemory(source_name(source), tuple(renamed), tuple(where for where, _ in rows))


def _named(source: Source, name: str) -> Source:
    """Rows that were given in memory under the name of their data; what comes from a file keeps the file's name."""
    if isinstance(source, RowsInMemory) and source.file_digest is None:
        return replace(source, name=name)
    return source


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
