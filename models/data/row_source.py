"""Where rows come from: a file, or memory. All are read as lines of JSON, so that all are checked alike."""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.models.data.table_files import TABLES, table_rows
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import open_regular, read_regular

# What compressed files begin with.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class DataError(BakeoutError):
    """A data file, or a row of one, that cannot be read."""


@dataclass(frozen=True)
class RowsInMemory:
    """Rows that lie in no file of their own, as ``lines`` of JSON in UTF-8. ``name`` is for errors.

    ``places``: for rows that were taken out of files, where each stands. ``file_digest``: the SHA-256, in hex, of the
    file that they are all rows of, as it was when it was read.
    """

    name: str
    lines: tuple[bytes, ...]
    places: tuple[str, ...] = ()
    file_digest: str | None = None


# A file, or rows in memory.
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
    """The rows as lines of JSON, each with a text that gives its place. Blank lines are left out.

    A file is a table where its name ends in .csv, .tsv or .parquet, an array where it begins with ``[``, and JSON lines
    otherwise; it may begin with a byte order mark. Raises ``DataError``.
    """
    if isinstance(source, RowsInMemory):
        places = source.places or [f"{source.name}, row {number}" for number in range(1, len(source.lines) + 1)]
        yield from zip(places, source.lines, strict=True)
    else:
        yield from _file_lines(source, _content(source))


def read_once(source: Source) -> RowsInMemory:
    """A file's rows in memory, with the digest of what was read: what takes its place later changes neither.

    Raises ``DataError`` as ``source_lines``.
    """
    if isinstance(source, RowsInMemory):
        return source
    content = _content(source)
    lines = list(_file_lines(source, content))
    digest = hashlib.sha256(content).hexdigest()
    return RowsInMemory(str(source), tuple(line for _, line in lines), tuple(where for where, _ in lines), digest)


def source_digest(source: Source) -> str:
    """SHA-256, in hex, of a file or of the file that rows in memory would make. Raises ``DataError``."""
    if isinstance(source, RowsInMemory):
        return source.file_digest or hashlib.sha256(b"".join(line + b"\n" for line in source.lines)).hexdigest()
    try:
        with open_regular(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(source, error) from None


def source_name(source: Source) -> str:
    """What errors call it: the path, or the name of rows in memory."""
    return source.name if isinstance(source, RowsInMemory) else str(source)


def require_text(text: str, where: str) -> None:
    """Raise ``DataError`` for half of a surrogate pair, as JavaScript cuts an emoji: no tokenizer encodes it."""
    if half := half_of_pair(text):
        raise DataError(
            f"{where}: the text holds half of a surrogate pair ({half}).", "Write the character whole, or remove it."
        )


def half_of_pair(text: str) -> str | None:
    """The first half of a surrogate pair that stands alone, as in ``U+D83D``; None where there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return None


def _file_lines(path: Path, content: bytes) -> Iterator[tuple[str, bytes]]:
    if path.suffix.lower() in TABLES:
        yield from _table_lines(path, content)
        return
    text = _text(path, content)
    if text.lstrip().startswith(b"["):
        yield from _array_lines(path, text)
        return
    for number, line in enumerate(text.split(b"\n"), start=1):
        # Files with a mark of their own may have been put together.
        if (unmarked := line.removeprefix(BOM_UTF8)).strip():
            yield f"{path}, line {number}", unmarked


def _table_lines(path: Path, content: bytes) -> Iterator[tuple[str, bytes]]:
    ending = path.suffix.lower()
    table = content if ending == ".parquet" else _text(path, content)
    try:
        for place, row in table_rows(table, ending):
            # Columns that are not read may hold dates or images.
            yield f"{path}, {place}", json.dumps(row, default=str).encode()
    except ValueError as error:
        raise DataError(f"{path}: not a table ({error}).", "Write the file anew, with a header, in UTF-8.") from None


def _array_lines(path: Path, content: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON array ({error}).", "Write the file anew, in UTF-8.") from None
    for number, row in enumerate(rows, start=1):
        # Escaped, since half of a surrogate pair is told where the row is read.
        yield f"{path}, row {number}", json.dumps(row).encode()


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _text(path: Path, content: bytes) -> bytes:
    """A file's text in UTF-8, without its byte order mark."""
    for magic, format_name in _COMPRESSED.items():
        if content.startswith(magic):
            raise DataError(f"{path}: compressed by {format_name}.", "Unpack it.")
    if not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return content.removeprefix(BOM_UTF8)
    try:
        return content.decode("utf-16").encode()
    except ValueError as error:
        raise DataError(f"{path}: not UTF-16 ({error}).", "Write the file anew, in UTF-8.") from None


def _line(row: Any, where: str) -> bytes:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a {type(row).__name__}, not a mapping.", "Give each row as a dict.")
    try:
        text = json.dumps(dict(row), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).", "Give each row as a dict of texts.") from None
    require_text(text, where)
    return text.encode()


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}).", "Check the path.")
