"""What rows say, however it is written: rows that are equal but for case, spaces and Unicode form are one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bakeout.models.data.row_layouts import in_known_layout
from bakeout.models.data.row_source import Source
from bakeout.models.data.rows import json_rows


@dataclass(frozen=True)
class RowContent:
    """A row's ``question`` and its ``answer`` in a normal form, and ``where`` it stands.

    A row that asks nothing, as plain text does, has what it says for its question. ``others``: the questions that the
    row gives as `paraphrases` and `translations`.
    """

    where: str
    question: str
    answer: str
    others: tuple[str, ...] = ()


def row_contents(source: Source) -> Iterator[RowContent]:
    """The content of every row. Raises ``DataError`` for what is no row; what else is wrong with one is told later."""
    for where, written in json_rows(source):
        yield row_content(written, where)


def row_content(written: Mapping[str, Any], where: str) -> RowContent:
    """The content of a row in any of the known layouts. Raises ``DataError`` as ``in_known_layout`` does."""
    row = in_known_layout(written, where)
    question, answer = _spoken(row)
    others = [
        _normal(text)
        for key in ("paraphrases", "translations")
        if isinstance(texts := row.get(key), list)
        for text in texts
    ]
    return RowContent(where, question or answer, answer if question else "", tuple(others))


def _spoken(row: Mapping[str, Any]) -> tuple[str, str]:
    messages = row.get("messages")
    if not isinstance(messages, list):
        return _normal(row.get("prompt", "")), _normal(row.get("response", row.get("text", "")))
    turns = [(turn.get("role"), _normal(turn.get("content"))) for turn in messages if isinstance(turn, dict)]
    answered = bool(turns) and turns[-1][0] == "assistant"
    asked = turns[:-1] if answered else turns
    return "\n".join(content for _, content in asked), turns[-1][1] if answered else ""


def _normal(text: Any) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold()) if isinstance(text, str) else ""
