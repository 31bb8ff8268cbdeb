"""The tokens that open every query, from which on the mean of its keys counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_logger = logging.getLogger(__name__)
# What a user's text can begin with: line breaks and spaces are joined with those in front of them.
_FOLLOWING = ("a", "A", "1", "?", "\n", "\n\n", "\n\n\n", " ", "  ", "\t")
# What a user and a model say where a template is read: texts that no template has.
_FIRST, _ANSWER, _SECOND = "bakeoutfirst", "bakeoutanswer", "bakeoutsecond"


def query_start(text: str, tokenizer: Tokenizer, queries: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens of ``text``, or with ``auto`` of what the chat template writes in front of a user's text in any turn.

    With ``auto`` they are those that are the same whatever follows, for the last can be joined with that. There are
    none without a template, where it writes them behind a user's text too, and, with a warning, where some query (token
    ids) is not asked through it. Raises ``BakeoutError`` for another text that some query does not hold.
    """
    if text != "auto":
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if tokens and all(_holds(query, tokens) for query in queries):
            return tuple(tokens)
        raise BakeoutError(
            f"`query_start`: not every query of the data holds {text!r}.",
            "Give a text that all of them hold in front of what is asked, or leave it out.",
        )
    opening, closing = _around_query(tokenizer)
    followed = [tokenizer.encode(opening + next_, add_special_tokens=False) for next_ in _FOLLOWING]
    tokens = list(_common_start(followed)) if opening else []
    if not tokens or _holds(tokenizer.encode(closing, add_special_tokens=False), tokens):
        return ()
    if not all(_holds(query, tokens) for query in queries):
        _logger.warning(
            "Not every query is a user's turn of the chat template: the mean key is that of all tokens but the first."
        )
        return ()
    return tuple(tokens)


def _common_start(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all sequences begin with."""
    shortest = min(sequences, key=len)
    ends = (place for place, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1)
    return shortest[: next(ends, len(shortest))]


def _holds(query: Sequence[int], tokens: Sequence[int]) -> bool:
    wanted = list(tokens)
    return any(list(query[start : start + len(wanted)]) == wanted for start in range(len(query) - len(wanted) + 1))


def _around_query(tokenizer: Tokenizer) -> tuple[str, str]:
    """What the chat template writes in front of a user's text both at first and behind an answer, and behind it."""
    if not tokenizer.chat_template:
        return "", ""
    history = [{"role": "user", "content": _FIRST}, {"role": "assistant", "content": _ANSWER}]
    try:
        first = render_chat(tokenizer, history[:1], generation=False)
        before = render_chat(tokenizer, history, generation=False)
        second = render_chat(tokenizer, [*history, {"role": "user", "content": _SECOND}], generation=False)
        asked = render_chat(tokenizer, history[:1], generation=True)
    except ChatTemplateError:
        return "", ""
    # What ends an answer is no part of a query.
    behind = before if second.startswith(before) else second[: second.find(_ANSWER) + len(_ANSWER)]
    openings = first[: max(first.find(_FIRST), 0)], second[len(behind) : max(second.find(_SECOND), 0)]
    common = 0
    for own, other in zip(*(reversed(opening) for opening in openings), strict=False):
        if own != other:
            break
        common += 1
    return openings[0][len(openings[0]) - common :], asked[asked.find(_FIRST) + len(_FIRST) :]
