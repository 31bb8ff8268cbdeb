"""Rows in memory are read, named and hashed as the file that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bakeout.models.data.row_source import DataError, as_source, source_digest, source_lines
from bakeout.models.data.rows import read_records

from tests.tiny_models import byte_tokenizer

ROWS = [{"prompt": "a – b", "response": " c"}, {"text": "two\nlines"}]


def test_rows_in_memory_are_the_file_that_holds_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    tokenizer = byte_tokenizer()
    for given in (str(path), ROWS, tuple(ROWS), iter(ROWS)):
        source = as_source(given)
        assert source_digest(source) == source_digest(path)
        assert read_records(source, tokenizer) == read_records(path, tokenizer)


@pytest.mark.parametrize(("magic", "name"), [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")])
def test_a_compressed_file_is_called_so(tmp_path: Path, magic: bytes, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(magic + b"\x08\x00")
    with pytest.raises(DataError, match=rf"rows\.jsonl: compressed by {name}\. Unpack it\."):
        list(source_lines(path))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (7, "capitals: a int, not rows"),
        ({"prompt": "a"}, "capitals: a dict, not rows"),
        (["a"], "capitals, row 1: a str, not a mapping"),
        ([{"prompt": "a"}, {"prompt": b"b"}], "capitals, row 2: not JSON"),
        ([{"prompt": "a"}, {"prompt": 1}], "capitals, row 2: prompt is 1"),
        ([], "capitals: there are no rows"),
    ],
)
def test_bad_rows_are_named(rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_records(as_source(rows, "capitals"), byte_tokenizer())
    assert "\n" not in str(caught.value)
