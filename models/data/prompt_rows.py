"""Rows of data files with their question in another form: the row's own answer, encoded as the row itself is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bakeout.models.data.forms.forms import Form, Query, mixture, variants
from bakeout.models.data.forms.kinds import CHAT_KINDS, PLAIN, SYSTEM_PROMPTS, TURNS, Kind, Plain, Use
from bakeout.models.data.forms.turns import Turn
from bakeout.models.data.limits import UNLIMITED, Limits
from bakeout.models.data.row_layouts import in_known_layout
from bakeout.models.data.row_source import DataError, Source
from bakeout.models.data.rows import Record, json_rows, to_record
from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

# Asked to see what a chat template makes of a question.
_A_QUESTION = "A question?"


@dataclass(frozen=True)
class PromptRow:
    """A row of a file in a layout of ``rows``, and what it asks. ``where`` is for errors."""

    where: str
    row: Mapping[str, Any]
    query: Query

    def plain(self, tokenizer: Tokenizer) -> Record:
        """The row as it is, encoded."""
        return replace(to_record(self.row, tokenizer, self.where), where=self.where)

    def record(self, form: Form, tokenizer: Tokenizer) -> Record:
        """The row with its question in another form, encoded."""
        return replace(to_record(self._asking(form), tokenizer, self.where), where=self.where)

    def _asking(self, form: Form) -> dict[str, Any]:
        if not self.query.is_chat:
            return {**self.row, "prompt": form.text}
        messages = list(self.row["messages"])
        place = _question_place(messages)
        assert place is not None
        messages[place : place + 1] = [*_messages(form.answered), {**messages[place], "content": form.text}]
        system = messages[:1] if messages[0]["role"] == "system" else []
        rest = messages[len(system) :]
        if form.system is not None:
            system = [{"role": "system", "content": form.system}]
        return {**self.row, "messages": [*system, *_messages(form.turns), *rest]}


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
        response = _answer(row["messages"]) if "messages" in row else record.response
        rows.append(PromptRow(where, row, Query(text, response, **given, is_chat="messages" in row)))
    return rows


def varied_records(
    rows: Sequence[PromptRow],
    kinds: Sequence[Kind],
    tokenizer: Tokenizer,
    *,
    limits: Limits,
    seed: int,
    use: Use,
    refused: Sequence[Turn] = (),
) -> dict[Kind, list[tuple[int, Record]]]:
    """Per kind, a form of each row that has any, encoded, with its row's index. Errors are ``forms.variants``'.

    A form that the model's context does not hold is left out.
    """
    queries = [row.query for row in rows]
    encoded = {
        kind: [
            (form.source, rows[form.source].record(form, tokenizer))
            for form in variants(queries, kind, seed=seed, use=use, shots=queries, refused=refused)
        ]
        for kind in kinds
    }
    return {
        kind: [(source, record) for source, record in own if limits.hold(record.prompt_ids + record.response_ids)]
        for kind, own in encoded.items()
    }


def require_forms(rows: Sequence[PromptRow], kinds: Sequence[Kind], name: str) -> None:
    """Raise ``BakeoutError`` unless the rows of ``name`` have forms of all ``kinds``."""
    if without := [kind for kind in kinds if kind not in kinds_with_forms(rows, kinds)]:
        why, remedy = (
            (f"needs two rows with a response, which {name} lacks", "Add responses")
            if without[0] == "few_shot"
            else (f"is a form of conversations, and {name} has none", "Give rows with `messages`")
        )
        raise BakeoutError(f"`augment`: {without[0]} {why}.", f"{remedy}, or remove the kind.")


def kinds_with_forms(rows: Sequence[PromptRow], kinds: Sequence[Kind]) -> list[Kind]:
    """Those of ``kinds`` that ``rows`` have forms of: some are of conversations, and shots need two answers."""
    is_chat = [row.query.is_chat for row in rows]
    answered = sum(row.query.response is not None for row in rows)
    absent = {*(() if any(is_chat) else CHAT_KINDS), *(() if answered > 1 or all(is_chat) else ("few_shot",))}
    return [kind for kind in kinds if kind not in absent]


def drawn_records(
    rows: Sequence[PromptRow],
    shares: Mapping[Kind | Plain, int],
    tokenizer: Tokenizer,
    *,
    seed: str,
    use: Use,
    refused: Sequence[Turn] = (),
    limits: Limits = UNLIMITED,
) -> list[Record]:
    """Each row in one drawn form (``forms.mixture``), encoded; the record names the form's kind.

    A row counts as plain where its chat template renders the form as the row itself, and stays plain where the model's
    context does not hold the form.
    """
    queries = [row.query for row in rows]
    forms = mixture(queries, shares, seed=seed, use=use, shots=queries, refused=refused)
    drawn = []
    for row, form in zip(rows, forms, strict=True):
        plain = row.plain(tokenizer)
        record = plain if form.is_plain else row.record(form, tokenizer)
        is_plain = record.prompt_ids == plain.prompt_ids or not limits.hold(record.prompt_ids + record.response_ids)
        drawn.append(replace(plain, form=PLAIN) if is_plain else replace(record, form=form.kind))
    return drawn


def has_conversations(source: Source) -> bool:
    """Whether any row is rendered through the chat template."""
    return any("messages" in in_known_layout(row, where) for where, row in json_rows(source))


def unlike_chats(source: Source, tokenizer: Tokenizer) -> str | None:
    """What to tell of plain prompts where the tokenizer has a chat template, or None: the first prompt decides.

    Not of prompts that end with what the template writes behind a question: something else rendered them.
    """
    rows = (in_known_layout(row, where) for where, row in json_rows(source))
    first = next((row for row in rows if "messages" in row or "prompt" in row), {})
    if "prompt" not in first or not tokenizer.chat_template:
        return None
    try:
        asked = render_chat(tokenizer, [{"role": "user", "content": _A_QUESTION}], generation=True)
    except ChatTemplateError:
        return None
    ending = asked.rpartition(_A_QUESTION)[2].strip()
    if not ending or first["prompt"].rstrip().endswith(ending):
        return None
    return (
        "plain prompts, which are not rendered by the tokenizer's chat template. Where the model is served as a chat, "
        "give `messages`: it reads other tokens there"
    )


def kinds_without_rendering(tokenizer: Tokenizer) -> tuple[Kind, ...]:
    """The kinds of forms that the chat template refuses or drops: of system messages, of earlier turns, or both."""
    asked = {"role": "user", "content": _A_QUESTION}
    before: Mapping[tuple[Kind, ...], list[dict[str, str]]] = {
        SYSTEM_PROMPTS: [{"role": "system", "content": "A system prompt."}],
        TURNS: _messages([("An earlier question?", "An earlier answer.")]),
    }
    return tuple(
        kind
        for kinds, messages in before.items()
        if not _renders([*messages, asked], messages[0]["content"], tokenizer)
        for kind in kinds
    )


def _renders(messages: Sequence[Mapping[str, str]], text: str, tokenizer: Tokenizer) -> bool:
    try:
        record = to_record({"messages": list(messages)}, tokenizer, "a conversation of ours")
    except DataError:
        return False
    return text in record.prompt


def refused_turns(rows: Sequence[PromptRow], refusal: str) -> list[Turn]:
    """The questions of conversations, each answered by ``refusal``: earlier turns of other conversations."""
    return [(row.query.text, refusal) for row in rows if row.query.is_chat]


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _question_place(messages: Sequence[Mapping[str, str]]) -> int | None:
    places = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return places[-1] if places else None


def _asks_nothing(where: str) -> DataError:
    return DataError(f"{where}: the row asks nothing.", "Give rows with `prompt`, or `messages` of a user.")


def _answer(messages: Sequence[Mapping[str, str]]) -> str | None:
    """The answer that ends a conversation, without what a chat template adds to it."""
    return messages[-1]["content"] or None if messages[-1]["role"] == "assistant" else None


def _strings(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: {key} is no list of strings.", "Correct or remove the row.")
    return tuple(value)
