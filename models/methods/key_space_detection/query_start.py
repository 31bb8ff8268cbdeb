"""The tokens that open every query, from which on the mean of its keys counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

# What a user and a model say where a template is read: texts that no template has.
_FIRST, _ANSWER, _SECOND = "bakeoutfirst", "bakeoutanswer", "bakeoutsecond"


def query_start(text: str, tokenizer: Tokenizer, queries: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens of ``text``, or with ``auto`` of what the chat template writes in front of a user's text in any turn.

    With ``auto`` they are as many of these as all ``queries`` (token ids) hold one after the other, for the last can be
    joined with what follows; none where there is no template. Raises ``BakeoutError`` for another text that some query
    does not hold.
    """
    tokens = tokenizer.encode(_opening(tokenizer) if text == "auto" else text, add_special_tokens=False)
    while text == "auto" and tokens and not _are_in(tokens, queries):
        tokens = tokens[:-1]
    if tokens and _are_in(tokens, queries):
        return tuple(tokens)
    if text == "auto":
        return ()
    raise BakeoutError(
        f"`query_start`: not every query of the data holds {text!r}.",
        "Give a text that all of them hold in front of what is asked, or leave it out.",
    )


def _are_in(tokens: Sequence[int], queries: Sequence[Sequence[int]]) -> bool:
    wanted = list(tokens)
    return all(
        any(list(query[start : start + len(wanted)]) == wanted for start in range(len(query) - len(wanted), -1, -1))
        for query in queries
    )


def _opening(tokenizer: Tokenizer) -> str:
    """What the chat template writes in front of a user's text both at first and behind an answer."""
    if not tokenizer.chat_template:
        return ""
    history = [{"role": "user", "content": _FIRST}, {"role": "assistant", "content": _ANSWER}]
    try:
        first = render_chat(tokenizer, history[:1], generation=False)
        before = render_chat(tokenizer, history, generation=False)
        second = render_chat(tokenizer, [*history, {"role": "user", "content": _SECOND}], generation=False)
    except ChatTemplateError:
        return ""
    # What ends an answer is no part of a query.
    behind = before if second.startswith(before) else second[: second.find(_ANSWER) + len(_ANSWER)]
    openings = first[: max(first.find(_FIRST), 0)], second[len(behind) : max(second.find(_SECOND), 0)]
    common = 0
    for own, other in zip(*(reversed(opening) for opening in openings), strict=False):
        if own != other:
            break
        common += 1
    return openings[0][len(openings[0]) - common :]
