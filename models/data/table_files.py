"""Tables as rows: CSV and TSV with a header, all fields as text; Parquet, where pyarrow is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.extras import installing, is_installed

# The endings of their files' names.
TABLES = (".csv", ".tsv", ".parquet")
_LONGEST_FIELD = 2**31 - 1


def table_rows(content: bytes, ending: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table whose file's name ends in ``ending``, each with the words that say where it stands in it.

    Raises ``ValueError`` for what is no such table, and ``BakeoutError`` for Parquet without pyarrow.
    """
    return _parquet_rows(content) if ending == ".parquet" else _csv_rows(content, "\t" if ending == ".tsv" else ",")


def _csv_rows(content: bytes, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # A long text is no sign of a wrong delimiter here.
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            if fields and not header:
                header = fields
            elif fields:
                if len(fields) != len(header):
                    raise ValueError(f"line {start} has {len(fields)} fields, and the header {len(header)}")
                yield f"line {start}", dict(zip(header, fields, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {start}: {error}") from None


def _parquet_rows(content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not is_installed("pyarrow"):
        raise BakeoutError("Parquet files need pyarrow.", f"Install it: {installing('pyarrow')}.")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(content))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError((str(error).splitlines() or ["damaged"])[0]) from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row
