"""JSON as it is read: what no document is, and what no function could follow, is a ``ValueError``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bakeout.models.files.reading import parse_json, read_regular


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[" * 200 + "]" * 200,
        '{"a":' * 200 + "1" + "}" * 200,
        "9" * 400,
        "9" * 5000,
        '{"a": "\\ud800"}',
        b"\xff\xfe\xff",
        b"\x80",
    ],
)
def test_what_is_no_document_is_told(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}'])
def test_numbers_that_json_does_not_have_are_read_unless_finite_ones_are_asked_for(text: str) -> None:
    parse_json(text)
    with pytest.raises(ValueError):
        parse_json(text, finite=True)


def test_what_files_hold_is_read() -> None:
    assert parse_json("[" * 90 + "]" * 90)
    assert parse_json(f"[{2**64}, -1, 1.5, {10**200}]") == [2**64, -1, 1.5, 10**200]
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json("3") == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError):
            read_regular(tmp_path / name)
