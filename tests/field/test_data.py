"""Rows as people have them: the files, layouts, templates and tokenizers that public reports name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.recipes.data_files import by_use
from bakeout.export.recipes.recipe import DataFiles
from bakeout.models.data.prompt_rows import read_prompt_rows
from bakeout.models.data.row_source import DataError, source_lines
from bakeout.models.data.rows import Record, read_records

from tests.tiny_models import byte_tokenizer

ROWS = [{"prompt": "ab", "response": " c"}, {"prompt": "7, or “8”", "response": " two\nlines"}]


def _jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _same(records: list[Record]) -> list[tuple[list[int], list[int]]]:
    return [(record.prompt_ids, record.response_ids) for record in records]


@pytest.mark.parametrize(
    ("name", "encoding", "mark"),
    [
        ("rows.jsonl", "utf-8", codecs.BOM_UTF8),
        ("rows.jsonl", "utf-16-le", codecs.BOM_UTF16_LE),
        ("rows.json", "utf-8", b""),
        ("rows.json", "utf-8", codecs.BOM_UTF8),
        ("rows.csv", "utf-8", b""),
        ("rows.csv", "utf-8", codecs.BOM_UTF8),
        ("rows.tsv", "utf-16-be", codecs.BOM_UTF16_BE),
        ("rows.parquet", "", b""),
    ],
)
def test_a_file_of_any_common_form_holds_the_same_rows(tmp_path: Path, name: str, encoding: str, mark: bytes) -> None:
    import csv
    import io

    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        text = io.StringIO(newline="")
        if name.endswith("l"):
            text.write("".join(json.dumps(row) + "\n" for row in ROWS))
        elif name.endswith(".json"):
            text.write(json.dumps(ROWS, indent=2))
        else:
            writer = csv.DictWriter(text, ["prompt", "response"], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        path.write_bytes(mark + text.getvalue().encode(encoding))
    tokenizer = byte_tokenizer()
    expected = read_records(_jsonl(tmp_path / "expected.jsonl", *ROWS), tokenizer)
    assert read_records(path, tokenizer) == expected


def test_fields_of_a_table_are_text(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text("prompt,response\n1+1=,007\n\nNA,None\n")
    assert [json.loads(line) for _, line in source_lines(path)] == [
        {"prompt": "1+1=", "response": "007"},
        {"prompt": "NA", "response": "None"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.json", b'[{"prompt": "a"}, {"prompt": 7}]', r"rows\.json, row 2: prompt is 7"),
        ("rows.json", b'[{"prompt": "a"}, 7]', r"rows\.json, row 2: a int"),
        ("rows.json", b'[{"prompt": "a"},\n', r"rows\.json: not a JSON array"),
        ("rows.json", b"[" * 100_000, r"rows\.json: not a JSON array"),
        ("rows.json", b"[]", r"rows\.json: there are no rows"),
        ("rows.csv", b'prompt,response\n"a\nb",c\nd\n', r"rows\.csv: not a table \(line 4 has 1 fields"),
        ("rows.csv", b'prompt,response\na,"b\n', r"rows\.csv: not a table \(line 2: "),
        ("rows.csv", b"prompt\n\xff\n", r"rows\.csv: not a table"),
        ("rows.csv", b"", r"rows\.csv: there are no rows"),
        ("rows.parquet", b"PAR1", r"rows\.parquet: not a table"),
        ("rows.jsonl", codecs.BOM_UTF16_LE + b"\x00", r"rows\.jsonl: not UTF-16"),
    ],
)
def test_a_damaged_file_of_another_form_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_records(path, byte_tokenizer())
    assert "\n" not in str(caught.value)


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bakeout.models.data import table_files
    from bakeout.models.errors import BakeoutError

    monkeypatch.setattr(table_files, "is_installed", lambda package: False)
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"")
    with pytest.raises(BakeoutError, match=r"bakeout\[parquet\]"):
        read_records(path, byte_tokenizer())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_of_an_emoji_is_named_by_its_row(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "fine 😀"}, {"prompt": "cut \ud83d"}]
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    with pytest.raises(DataError, match=rf"{name}, (line|row) 2: .*half of a surrogate pair \(U\+D83D\)"):
        read_records(path, byte_tokenizer())


@pytest.mark.parametrize(
    ("row", "same"),
    [
        ({"question": "ab", "answer": " c"}, {"prompt": "ab", "response": " c"}),
        ({"question": "ab"}, {"prompt": "ab"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            {"messages": [{"role": "user", "content": "a\nb"}]},
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        ),
        (
            {"system": "be brief", "conversations": [{"from": "user", "value": "hi"}]},
            {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]},
        ),
        (
            {"conversations": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            {"messages": [{"role": "user", "content": "hi"}]},
        ),
    ],
)
def test_rows_of_other_projects_are_read(tmp_path: Path, row: Any, same: Any) -> None:
    tokenizer = byte_tokenizer()
    theirs, ours = (_jsonl(tmp_path / name, line) for name, line in (("theirs.jsonl", row), ("ours.jsonl", same)))
    assert read_records(theirs, tokenizer) == read_records(ours, tokenizer)
    assert read_prompt_rows(theirs, tokenizer)[0].prompt == read_prompt_rows(ours, tokenizer)[0].prompt


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"no text \(image_url\)"),
        ({"conversations": [{"from": "human"}]}, "messages is not a list"),
        ({"conversations": [{"from": 7, "value": "a"}]}, "messages is not a list"),
        ({"conversations": 7}, "neither prompt, text nor messages"),
        ({"question": ["a"]}, "prompt is"),
    ],
)
def test_rows_of_no_known_layout_are_named(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{says}"):
        read_records(_jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, row), byte_tokenizer())


def test_a_recipe_names_the_columns_of_other_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"row {number}", "output": " c", "id": number} for number in range(60)]
    path = _jsonl(tmp_path / "rows.jsonl", *rows)
    data = {"x": DataFiles(probe=path, columns={"prompt": "instruction", "response": "output"})}
    records = read_records(by_use(data)["x"]["probe"], byte_tokenizer())
    assert [(record.prompt, record.response) for record in records] == [(f"row {number}", " c") for number in range(60)]
    whole = DataFiles(file=path, columns={"prompt": "instruction", "response": "missing"})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: the row has no 'missing'"):
        by_use({"x": whole})


def test_a_row_of_a_split_file_is_named_by_its_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"row {number}"} for number in range(60)]
    rows[41] = {"prompt": ""}
    sources = by_use({"x": DataFiles(file=_jsonl(tmp_path / "rows.jsonl", *rows))})["x"]
    with pytest.raises(DataError, match=r"rows\.jsonl, line 42: the row has no tokens"):
        for source in sources.values():
            read_records(source, byte_tokenizer())
