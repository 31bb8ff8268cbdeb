"""Rows of data files with their question in another form: the row's own answer, encoded as the row itself is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bakeout.models.data.limits import UNLIMITED, Limits
from bakeout.models.data.row_layouts import in_known_layout
from bakeout.models.data.row_source import DataError, Source
from bakeout.models.data.rows import Record, json_rows, to_record
from bakeout.models.data.variants import Kind, Prompt, Use, variants

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


@dataclass(frozen=True)
class PromptRow:
    """A row of a file in a layout of ``rows``, and what it asks. ``where`` is for errors."""

    where: str
    row: Mapping[str, Any]
    prompt: Prompt

    def asking(self, text: str) -> dict[str, Any]:
        """The row with ``text`` for its question."""
        if "messages" not in self.row:
            return {**self.row, "prompt": text}
        messages = list(self.row["messages"])
        place = _question_place(messages)
        assert place is not None
        messages[place] = {**messages[place], "content": text}
        return {**self.row, "messages": messages}

    def record(self, text: str, tokenizer: Tokenizer) -> Record:
        """The row with ``text`` for its question, encoded."""
        return to_record(self.asking(text), tokenizer, self.where)


def asking_more(row: Mapping[str, Any], text: str, where: str) -> dict[str, Any]:
    """A row with ``text`` behind its question. Raises ``DataError`` for a row that asks nothing."""
    if "messages" not in row:
        if not isinstance(row.get("prompt"), str):
            raise _asks_nothing(where)
        return {**row, "prompt": row["prompt"] + text}
    messages = list(row["messages"])
    place = _question_place(messages)
    if place is None:
        raise _asks_nothing(where)
    messages[place] = {**messages[place], "content": messages[place]["content"] + text}
    return {**row, "messages": messages}


def answering(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A row with ``text`` for its response, or for the assistant's last message."""
    if "messages" not in row:
        return {**row, "response": text}
    messages = list(row["messages"])
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return {**row, "messages": [*messages, {"role": "assistant", "content": text}]}


def read_prompt_rows(source: Source, tokenizer: Tokenizer, limits: Limits = UNLIMITED) -> list[PromptRow]:
    """The rows of a source that ask something: a ``prompt``, or the last user message of ``messages``.

    A row may have ``paraphrases`` and ``translations`` of its question: lists of strings.

    Raises ``DataError``, naming file and line, for rows that ``read_records`` refuses, that ask nothing, or whose
    ``paraphrases`` or ``translations`` are no lists of strings.
    """
    rows = []
    for where, written in json_rows(source):
        row = in_known_layout(written, where)
        record = to_record(row, tokenizer, where)
        limits.require(record.prompt_ids + record.response_ids, tokenizer, where)
        if "messages" in row:
            place = _question_place(row["messages"])
            text = "" if place is None else row["messages"][place]["content"]
        else:
            text = record.prompt
        if not text:
            raise _asks_nothing(where)
        given = {key: _strings(row, key, where) for key in ("paraphrases", "translations")}
        rows.append(PromptRow(where, row, Prompt(text, record.response, **given)))
    return rows


def varied_records(
    rows: Sequence[PromptRow],
    kinds: Sequence[Kind],
    tokenizer: Tokenizer,
    *,
    seed: int,
    use: Use,
) -> dict[Kind, list[tuple[int, Record]]]:
    """Per kind, a variant of each row that has any, encoded, with its row's index. Errors are ``attacks.variants``'."""
    prompts = [row.prompt for row in rows]
    return {
        kind: [
            (variant.source, rows[variant.source].record(variant.text, tokenizer))
            for variant in variants(prompts, kind, seed=seed, use=use, shots=prompts)
        ]
        for kind in kinds
    }


def _question_place(messages: Sequence[Mapping[str, str]]) -> int | None:
    places = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return places[-1] if places else None


def _asks_nothing(where: str) -> DataError:
    return DataError(f"{where}: the row asks nothing.", "Give rows with `prompt`, or `messages` of a user.")


def _strings(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: {key} is no list of strings.", "Correct or remove the row.")
    return tuple(value)
