"""The tokens that every query ends with, by which a graph tells queries from drafts of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


def query_end(text: str, tokenizer: Tokenizer, queries: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The tokens of ``text``, or with ``auto`` of the chat template's opening of an answer.

    With ``auto`` there are none where there is no template, or where it is not what all ``queries`` (token ids) end
    with. Raises ``BakeoutError`` for another text that some query does not end with.
    """
    tokens = tokenizer.encode(_generation_prompt(tokenizer) if text == "auto" else text, add_special_tokens=False)
    if all(list(query[len(query) - len(tokens) :]) == tokens for query in queries):
        return tuple(tokens)
    if text == "auto":
        return ()
    raise BakeoutError(
        f"`query_end`: not every query of the data ends with {text!r}.",
        "Give the text that all of them end with, or leave it out.",
    )


def _generation_prompt(tokenizer: Tokenizer) -> str:
    """What the chat template writes before an answer; empty where that is not told."""
    if not tokenizer.chat_template:
        return ""
    messages = [{"role": "user", "content": "a"}]
    try:
        history = render_chat(tokenizer, messages, generation=False)
        prompt = render_chat(tokenizer, messages, generation=True)
    except ChatTemplateError:
        return ""
    return prompt[len(history) :] if prompt.startswith(history) else ""
