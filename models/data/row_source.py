"""Where rows come from: a JSONL file, or memory. Both are read as lines of JSON, so that both are checked alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import open_regular, read_regular


class DataError(BakeoutError):
    """A data file, or a row of one, that cannot be read."""


@dataclass(frozen=True)
class RowsInMemory:
    """Rows that lie in no file of their own, as ``lines`` of JSON in UTF-8. ``name`` says in errors what they are."""

    name: str
    lines: tuple[bytes, ...]


# A JSONL file, or rows in memory.
Source = Path | RowsInMemory
# What a caller may give for one.
RowsLike = Path | str | Iterable[Mapping[str, Any]] | RowsInMemory


def as_source(rows: RowsLike, name: str = "rows") -> Source:
    """A path as it is; a sequence of JSON objects as the lines that ``json.dumps(row, ensure_ascii=False)`` writes.

    So rows that were read from such a file have the file's digest, and are split as the file is. ``name`` is for
    errors. Raises ``DataError``, naming the row, for what is no JSON object.
    """
    if isinstance(rows, str):
        return Path(rows)
    if isinstance(rows, Path | RowsInMemory):
        return rows
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"{name}: a {type(rows).__name__}, not rows.", "Give a path, or a list of dicts.")
    return RowsInMemory(name, tuple(_line(row, f"{name}, row {number}") for number, row in enumerate(rows, start=1)))


def source_lines(source: Source) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank, each with the words that say where it stands. Raises ``DataError``."""
    unit = "line" if isinstance(source, Path) else "row"
    for number, line in enumerate(_content(source).split(b"\n"), start=1):
        if line.strip():
            yield f"{source_name(source)}, {unit} {number}", line


def source_digest(source: Source) -> str:
    """SHA-256, in hex, of a file or of the file that rows in memory would make. Raises ``DataError``."""
    if isinstance(source, RowsInMemory):
        return hashlib.sha256(_content(source)).hexdigest()
    try:
        with open_regular(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(source, error) from None


def source_name(source: Source) -> str:
    """What errors call it: the path, or the name of rows in memory."""
    return source.name if isinstance(source, RowsInMemory) else str(source)


def _content(source: Source) -> bytes:
    if isinstance(source, RowsInMemory):
        return b"".join(line + b"\n" for line in source.lines)
    try:
        return read_regular(source)
    except OSError as error:
        raise _unreadable(source, error) from None


def _line(row: Any, where: str) -> bytes:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a {type(row).__name__}, not a mapping.", "Give each row as a dict.")
    try:
        return json.dumps(dict(row), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: not JSON ({error}).", "Give each row as a dict of texts.") from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}).", "Check the path.")
