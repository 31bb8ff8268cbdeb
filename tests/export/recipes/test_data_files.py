"""Rows that serve for everything are split by their rows' text alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bakeout.export.recipes.data_files import SHARES, by_use
from bakeout.export.recipes.recipe import DataFiles
from bakeout.models.data.row_source import DataError, source_digest, source_lines


def _parts(directory: Path, lines: list[str], ending: str = "\n") -> dict[str, list[str]]:
    directory.mkdir()
    path = directory / "all.jsonl"
    path.write_text(ending.join(lines) + ending, encoding="utf-8", newline="")
    sources = by_use({"all": DataFiles(file=path)})["all"]
    return {use: [line.decode() for _, line in source_lines(source)] for use, source in sources.items()}


def test_parts_are_disjoint_whole_and_about_as_large_as_said(tmp_path: Path) -> None:
    lines = [f'{{"text": "row {number}"}}' for number in range(1000)]
    parts = _parts(tmp_path / "a", lines)
    assert parts.keys() == SHARES.keys()
    assert sorted(line for part in parts.values() for line in part) == sorted(lines)
    for use, share in SHARES.items():
        assert abs(len(parts[use]) - 10 * share) < 60


def test_rows_keep_their_part_when_others_come_and_go(tmp_path: Path) -> None:
    lines = [f'{{"text": "row {number}"}}' for number in range(60)]
    before = _parts(tmp_path / "a", lines[:40])
    after = _parts(tmp_path / "b", ["", *lines[:0:-1]], ending="\r\n")
    for use, rows in before.items():
        assert {row for row in rows if row != lines[0]} <= {row.strip() for row in after[use]}


def test_a_file_that_is_too_small_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 question in 1 row, too few to split"):
        _parts(tmp_path / "a", ['{"text": "only"}'])


def test_rows_that_all_ask_the_same_are_told_from_few_rows(tmp_path: Path) -> None:
    rows = [f'{{"prompt": "Solve.", "response": "{number}"}}' for number in range(400)]
    with pytest.raises(DataError, match=r"1 question in 400 rows, too few .*: rows that ask the same stay together"):
        _parts(tmp_path / "a", rows)


@pytest.mark.parametrize("count", [3, 400])
def test_rows_in_an_unknown_layout_are_not_called_too_few(tmp_path: Path, count: int) -> None:
    rows = [f'{{"task": "{number} + 1", "input": "", "output": "?"}}' for number in range(count)]
    with pytest.raises(DataError, match=r"all\.jsonl, line 1: the row has nothing in prompt, text or messages"):
        _parts(tmp_path / "a", rows)


def test_files_with_a_use_of_their_own_are_left_alone(tmp_path: Path) -> None:
    assert by_use({"x": DataFiles(probe=tmp_path / "p", test=tmp_path / "t")}) == {
        "x": {"probe": tmp_path / "p", "test": tmp_path / "t"}
    }


def test_rows_in_memory_are_split_as_the_file_that_holds_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is ½ of {number}?", "response": f" {number / 2}"} for number in range(60)]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    file, memory = (by_use({"all": DataFiles(file=given)})["all"] for given in (path, rows))
    assert {use: source_digest(source) for use, source in file.items()} == {
        use: source_digest(source) for use, source in memory.items()
    }
