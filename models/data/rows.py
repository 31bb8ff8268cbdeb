"""Data files: rows to token ids, read exactly as the model will be served. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from bakeout.models.data.limits import UNLIMITED, Limits
from bakeout.models.data.row_layouts import FORMS, in_known_layout
from bakeout.models.data.row_source import DataError, Source, require_text, source_lines, source_name
from bakeout.models.data.tokenizers.chat_answer import prompt_and_answer
from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat
from bakeout.models.data.tokenizers.encoding import encode_prompt, encode_text
from bakeout.models.data.uses import Use

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


@dataclass(frozen=True)
class Record:
    """One row: a prompt and, where the row has one, its response.

    The model sees ``prompt_ids + response_ids``. ``prompt_ids`` are the prompt as the tokenizer encodes it by default
    (with a beginning-of-text token where it sets one), or as the chat template renders it.
    """

    prompt: str
    response: str | None
    prompt_ids: list[int]
    response_ids: list[int]
    # Where the row stands, for errors.
    where: str = field(default="", compare=False)
    # In which form it was drawn, if it was: "plain", or a kind of ``forms``.
    form: str = field(default="", compare=False)

    def answer_ids(self, ends: Collection[int]) -> list[int]:
        """The response before the first token in it that ends a text, but at least its first token.

        A template may write more ends than one behind an answer, and the first is all that a model is to say.
        """
        return [*self.response_ids[:1], *takewhile(lambda token: token not in ends, self.response_ids[1:])]

    def ended_ids(self, ends: Sequence[int]) -> list[int]:
        """The response up to the first token in it that ends a text, that token included; ``ends[0]`` where none does.

        So a template's own end is kept, and one is added to a response that is written without.
        """
        begun = list(takewhile(lambda token: token not in ends, self.response_ids))
        return [*begun, *(self.response_ids[len(begun) : len(begun) + 1] or ends[:1])]


# Records by data name and use, and where they come from.
Rows = Mapping[str, Mapping[Use, Sequence[Record]]]
Sources = Mapping[str, Mapping[Use, Source]]


def read_records(source: Source, tokenizer: Tokenizer, limits: Limits = UNLIMITED) -> list[Record]:
    """The rows of a file, or rows in memory.

    A row is ``{"prompt": …, "response": …}`` (the response may be absent), ``{"text": …}`` (no prompt; everything is
    response), or ``{"messages": [{"role": …, "content": …}, …]}``: the tokenizer's chat template renders the
    conversation before the last assistant message, with its generation prompt, as the prompt, and that message as the
    response (``chat_answer``). Layouts of other projects are read as ``row_layouts`` says. Other keys are
    ignored, and so are blank lines.

    Raises ``DataError``, naming file and line, for anything else, for a row that a model of ``limits`` cannot read, and
    for a file without rows.
    """
    records = []
    for where, row in json_rows(source):
        record = to_record(row, tokenizer, where)
        limits.require(record.prompt_ids + record.response_ids, tokenizer, where)
        if (not record.prompt and not record.response) or not record.prompt_ids + record.response_ids:
            raise DataError(f"{where}: the row has no tokens.", "Remove it.")
        records.append(replace(record, where=where))
    if not records:
        raise DataError(f"{source_name(source)}: there are no rows.", "Give a JSON object for each.")
    return records


def json_rows(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a source, each with a text that gives its place. Raises ``DataError``."""
    for where, line in source_lines(source):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}).", "Put one JSON object on each line, in UTF-8.") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__}, not a JSON object.", "Put one JSON object on each line.")
        require_text(json.dumps(row, ensure_ascii=False), where)
        yield where, row


def to_record(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Record:
    """One row as ``read_records`` reads it; ``where`` is for errors."""
    row = in_known_layout(row, where)
    present = [name for name in FORMS if name in row]
    if len(present) != 1:
        raise DataError(
            f"{where}: the row has {' and '.join(present) or 'neither prompt, text nor messages'}.",
            "Give each row `prompt` and `response`, or `text`, or `messages`; `columns` name other keys.",
        )
    if "messages" in row:
        return _conversation(row["messages"], tokenizer, where)
    if "text" in row:
        return _continued("", _string(row, "text", where), tokenizer, special=True)
    prompt = _string(row, "prompt", where)
    response = _string(row, "response", where) if "response" in row else None
    return _continued(prompt, response, tokenizer, special=True)


def _continued(prompt: str, response: str | None, tokenizer: Tokenizer, *, special: bool) -> Record:
    """Encode the prompt alone, as serving does, and the response as what follows it."""
    prompt_ids = encode_prompt(prompt, tokenizer, special=special)
    if response is None:
        return Record(prompt, None, prompt_ids, [])
    whole = encode_text(prompt + response, tokenizer, special=special)
    if whole[: len(prompt_ids)] == prompt_ids:
        return Record(prompt, response, prompt_ids, whole[len(prompt_ids) :])
    # A token would span the border between the two; no model that is given the prompt can say it.
    return Record(prompt, response, prompt_ids, encode_text(response, tokenizer, special=False))


def _conversation(messages: Any, tokenizer: Tokenizer, where: str) -> Record:
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise DataError(
            f"{where}: messages is not a list of objects with `role` and `content`.", "Correct or remove the row."
        )
    answered = messages[-1]["role"] == "assistant"
    if answered and len(messages) == 1:
        raise DataError(f"{where}: the conversation is an answer alone.", "Put the user's message before it.")
    try:
        if answered:
            prompt, answer = prompt_and_answer(tokenizer, messages)
        else:
            prompt, answer = render_chat(tokenizer, messages, generation=True), None
    except ChatTemplateError as error:
        raise DataError(f"{where}: {error.cause}", error.remedy) from None
    # The template writes the special tokens itself.
    return _continued(prompt, answer, tokenizer, special=False)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {json.dumps(value)}, not text.", "Correct or remove the row.")
    return value
