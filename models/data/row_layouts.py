"""Layouts of rows that other projects write, as those that are read here: prompt and response, text, or messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bakeout.models.data.row_source import DataError

FORMS = ("prompt", "text", "messages")
# What is read of a row; the last five by graders alone.
Column = Literal[
    "prompt",
    "context",
    "response",
    "text",
    "messages",
    "paraphrases",
    "translations",
    "answer",
    "answers",
    "choices",
    "tests",
    "setup",
]
# What ShareGPT's `from` calls the roles.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
# What some files keep beside a question, which means another thing without it.
_BESIDE_QUESTIONS = ("system", "context", "input")
# What a certificate measures by, beside the answer that `columns` name.
_OF_TOFU = ("perturbed_answer", "paraphrased_answer")
_TEXT_PARTS = ("text", "input_text", "output_text")


def in_known_layout(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A row in one of ``FORMS``, where it has one of the other layouts; other keys stay as they are.

    ``question`` and ``answer`` (TOFU) are ``prompt`` and ``response``; ``conversations`` (ShareGPT: ``from`` and
    ``value``, with or without ``system``) are ``messages``; a ``content`` that is a list of text parts is those texts,
    each on a line of its own. ``completion`` (TRL) is the ``response`` to a ``prompt``, and where these are lists of
    messages, both are ``messages``. Rows with ``choices`` (MMLU) have the right one as their response, and rows with a
    ``test_list`` (MBPP) have ``tests``, and their ``text`` and ``code`` are prompt and response. An ``instruction``
    with its ``output`` or ``response`` (Alpaca, Dolly) is the prompt, on the line behind it the ``input`` or
    ``context`` that it is about, as behind its ``paraphrases`` and ``translations``. Raises ``DataError`` for parts
    that are no text, and for a part of the question that would not be read.
    """
    row = _in_form(row, where)
    if "prompt" in row or "messages" in row:
        _require_whole_question(row, where)
    return row


def _require_whole_question(row: Mapping[str, Any], where: str) -> None:
    """Raise ``DataError`` where a row keeps a part of its question elsewhere."""
    for key in _BESIDE_QUESTIONS:
        value = row.get(key)
        if value.strip() if isinstance(value, str) else value not in (None, [], {}):
            raise DataError(
                f"{where}: the row has {key!r} beside its question, which would not be read.",
                "Put it into the prompt or the messages, or remove it.",
            )


def _in_form(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if "test_list" in row:
        row = _with_tests(row)
    if _is_instruction(row):
        return _with_instruction(row, where)
    if "prompt" in row:
        row = _with_completion(row)
    if any(form in row for form in FORMS):
        messages = row.get("messages")
        return (
            {**row, "messages": [_message(message, where) for message in messages]}
            if isinstance(messages, list)
            else row
        )
    if "question" in row and "choices" in row:
        return _multiple_choice(row, where)
    if "question" in row:
        renamed = {"question": "prompt", "answer": "response"}
        return {renamed.get(key, key): value for key, value in row.items()}
    if "conversations" in row and isinstance(row["conversations"], list):
        messages = [_message(_from_share_gpt(turn), where) for turn in row["conversations"]]
        if row.get("system"):
            messages.insert(0, {"role": "system", "content": row["system"]})
        return {
            **{key: value for key, value in row.items() if key not in ("conversations", "system")},
            "messages": messages,
        }
    return row


def _with_completion(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A prompt with its completion, as text or as messages."""
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(prompt, list) and "messages" not in row:
        rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
        if completion is None:
            return {**rest, "messages": prompt}
        answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return {**rest, "messages": [*prompt, *answer]}
    if completion is not None and "response" not in row:
        return {"response" if key == "completion" else key: value for key, value in row.items()}
    return row


def _is_instruction(row: Mapping[str, Any]) -> bool:
    """Whether the instruction is what is asked. Some rows have one beside what is, as MMLU's or a text's."""
    asked, said = row.get("instruction"), row.get("output", row.get("response"))
    if not isinstance(asked, str) or not isinstance(said, str):
        return False
    text = row.get("text")
    # Alpaca's text is all of it once more, in a template that few models know.
    whole = text is None or (isinstance(text, str) and asked in text and said in text)
    return whole and not any(row.get(key) for key in ("prompt", "messages", "conversations", "question", "choices"))


def _with_instruction(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Alpaca's and Dolly's fields."""
    asked = [row["instruction"], *(row[key] for key in ("input", "context") if row.get(key))]
    if not all(isinstance(part, str) for part in asked):
        raise DataError(f"{where}: a part of the instruction is no text.", "Correct or remove the row.")
    said = {"output": "response"} if "response" not in row else {}
    read = ("instruction", "input", "context", "text", "prompt", "messages")
    rest = {said.get(key, key): value for key, value in row.items() if key not in read}
    return _on_context({"prompt": asked[0], **rest}, asked[1:])


def _with_tests(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """MBPP's fields under the names that are read here; its text is a question, unlike other rows' ``text``."""
    renamed = {"test_list": "tests", "test_setup_code": "setup"}
    if "code" in row and "response" not in row:
        renamed["code"] = "response"
        if "prompt" not in row:
            renamed["text"] = "prompt"
    return {renamed.get(key, key): value for key, value in row.items()}


def _multiple_choice(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """MMLU's question, with the choice that its ``answer`` is the index of as the response."""
    choices, answer = row["choices"], row.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"{where}: the answer is no index of the choices.", "Correct or remove the row.")
    return {**row, "prompt": row["question"], "response": choices[answer]}


def with_columns(row: Mapping[str, Any], columns: Mapping[Column, str], where: str) -> Mapping[str, Any]:
    """The row of a file with keys of its own: each of ``columns`` from the key it names.

    A ``context`` stands on the lines behind the prompt and its other wordings, as in Alpaca's and Dolly's rows; a row
    without one, or with an empty one, asks without. Raises ``DataError``.
    """
    required = {column: key for column, key in columns.items() if column != "context"}
    if missing := [key for key in required.values() if key not in row]:
        raise DataError(f"{where}: the row has no {missing[0]!r}.", f"Correct `columns`: the row has {', '.join(row)}.")
    if {"prompt", "messages"} & columns.keys():
        _require_whole_question({key: value for key, value in row.items() if key not in columns.values()}, where)
    renamed: dict[str, Any] = {column: row[key] for column, key in required.items()}
    renamed |= {key: row[key] for key in _OF_TOFU if key in row}
    context = row.get(columns["context"]) if "context" in columns else None
    if context is None or (isinstance(context, str) and not context.strip()):
        return renamed
    if not isinstance(context, str) or not isinstance(renamed.get("prompt"), str):
        raise DataError(f"{where}: the context or its prompt is no text.", "Correct `columns`, or the row.")
    return _on_context(renamed, [context])


def _on_context(row: Mapping[str, Any], context: Sequence[str]) -> Mapping[str, Any]:
    """The row with what its prompt is about on the lines behind it, and behind the same question in other words."""

    def whole(question: str) -> str:
        return "\n".join(part for part in (question, *context) if part.strip())

    # What is no text, or an empty one, is judged where it is read.
    others = {
        key: [whole(one) if isinstance(one, str) and one.strip() else one for one in row[key]]
        for key in ("paraphrases", "translations")
        if isinstance(row.get(key), list)
    }
    return {**row, "prompt": whole(row["prompt"]), **others}


def _from_share_gpt(turn: Any) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = turn["from"]
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": turn.get("value")}


def _message(message: Any, where: str) -> Any:
    """The message with its parts as one text. What is no message is left to who reads it."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": "\n".join(_text_of(part, where) for part in message["content"])}


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
    raise DataError(f"{where}: a content has a part that is no text ({kind}).", "Give texts alone.")
