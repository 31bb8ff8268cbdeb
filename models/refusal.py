"""How a refusal is said: which token of it each position says, stepping token by token. Pure Python.

A refusal is r_0 .. r_{R-1}, the last one the end-of-text token. The state of a refused position is the number s
(1 to R) of its tokens that have been said once that position has spoken: the position says r_{s-1}. The design
leaves open what new input does to a refusal; our reading: the refused conversation stays refused, input that
continues the refusal gets its next token, any other starts it again, and so does input after the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence


def said_after(refusal: Sequence[int], previous_said: int, tokens: Sequence[int]) -> list[int]:
    """The state after each of the new ``tokens`` of a conversation in which ``previous_said`` tokens were said.

    s is one more than the length of the longest proper prefix of the refusal with which the conversation ends: the
    tokens r_0 .. r_{previous_said - 2}, which were said and fed back, and then the new ones. ``previous_said`` (1 to R)
    of 1 is a refusal that has only just begun. Raises ``ValueError`` for another number.
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
