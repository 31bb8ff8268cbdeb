"""What is refused, and how the refusal is generated, row by row and token by token. Pure Python.

A refusal is r_0 .. r_{R-1}, the last one the end-of-text token. The state of a refused position is the number s
(1 to R) of its tokens that have been generated after that position: the position generates r_{s-1}. The design
leaves open what new input does to a refusal; our reading: the refused conversation stays refused, input that
continues the refusal gets its next token, other input starts it again, and so does input after its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bakeout.models.plan import Positions


@dataclass(frozen=True)
class RowRefusal:
    """What becomes of the new positions of one row.

    ``said``: per position the state, 0 where the model's own token stands. ``latched``: per position the state that its
    slot of the cache keeps, 0 where it keeps none. ``query``, ``mean`` and ``step`` refuse a whole run but latch only
    from the tested token on, because the tokens before it may be the prefix of another, innocent query.
    """

    said: list[int]
    latched: list[int]


def positions_tested(
    positions: Positions,
    *,
    has_past: bool,
    real: Sequence[bool],
    tokens: Sequence[int] = (),
    query_end: Sequence[int] = (),
) -> list[bool]:
    """Which new positions of a row are tested against the cubes; with ``mean`` the last stands for those that count.

    ``real`` is False at padding; ``tokens`` and ``query_end`` say whether a row with a past is a query (``Check``).
    """
    if positions == "every":
        return list(real)
    newest = max((index for index, is_real in enumerate(real) if is_real), default=None)
    if positions in ("query", "mean") and has_past and (len(real) == 1 or not _ends_query(query_end, real, tokens)):
        newest = None
    return [index == newest for index in range(len(real))]


def _ends_query(query_end: Sequence[int], real: Sequence[bool], tokens: Sequence[int]) -> bool:
    """Whether the real tokens end with ``query_end``, or are the end of it."""
    if not query_end:
        return True
    compared = min(len(query_end), sum(real))
    given = [token for token, is_real in zip(tokens, real, strict=True) if is_real]
    return given[len(given) - compared :] == list(query_end[len(query_end) - compared :])


def refuse_row(
    refusal: Sequence[int],
    positions: Positions,
    *,
    past_said: int,
    tokens: Sequence[int],
    real: Sequence[bool],
    inside: Sequence[bool],
) -> RowRefusal:
    """The refusal of one row's new ``tokens``.

    ``past_said`` is the state latched in the newest real slot of the row's past, 0 for none; ``real`` is False at
    padding, which is no part of the conversation; ``inside`` says which tested positions lie in a cube.
    """
    if past_said:
        states = _said_at(refusal, past_said, tokens, real)
        return RowRefusal(states, states)
    if not any(inside):
        return RowRefusal([0] * len(tokens), [0] * len(tokens))
    first = list(inside).index(True)
    if positions == "every":
        states = [0] * first + [1] + _said_at(refusal, 1, tokens[first + 1 :], real[first + 1 :])
        return RowRefusal(states, states)
    return RowRefusal([1] * len(tokens), [0] * first + [1] * (len(tokens) - first))


def said_after(refusal: Sequence[int], previous_said: int, tokens: Sequence[int]) -> list[int]:
    """The state after each new token of a conversation in which ``previous_said`` tokens of the refusal were generated.

    s is one more than the length of the longest proper prefix of the refusal with which the conversation ends: the
    tokens r_0 .. r_{previous_said - 2}, which were generated and fed back, and then the new ones. ``previous_said`` (1
    to R) of 1 is a refusal that has only just begun. Raises ``ValueError`` for another number.
    """
    if not 1 <= previous_said <= len(refusal):
        raise ValueError(f"previous_said is {previous_said}, not between 1 and {len(refusal)}")
    borders = _borders(refusal)
    matched = previous_said - 1
    states = []
    for token in tokens:
        matched = _advance(refusal, borders, matched, token)
        if matched == len(refusal):
            matched = borders[matched]
        states.append(matched + 1)
    return states


def _said_at(refusal: Sequence[int], said: int, tokens: Sequence[int], real: Sequence[bool]) -> list[int]:
    """The state at each token; padding leaves it as it was."""
    states = []
    for token, is_real in zip(tokens, real, strict=True):
        if is_real:
            (said,) = said_after(refusal, said, [token])
        states.append(said)
    return states


def _advance(refusal: Sequence[int], borders: Sequence[int], matched: int, token: int) -> int:
    """One step of the Knuth-Morris-Pratt automaton: how much of the refusal is matched after one more token."""
    while matched > 0 and refusal[matched] != token:
        matched = borders[matched]
    return matched + 1 if refusal[matched] == token else 0


def _borders(refusal: Sequence[int]) -> list[int]:
    """For each length n of a prefix of the refusal, the longest shorter prefix that it also ends with."""
    borders = [0, 0]
    for token in refusal[1:]:
        borders.append(_advance(refusal, borders, borders[-1], token))
    return borders
