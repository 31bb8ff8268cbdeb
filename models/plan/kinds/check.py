"""What a refusing intervention provides: the regions of key space in which it refuses, and the refusal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bakeout.models.plan.arrays import Floats, Integers
from bakeout.models.plan.model_identity import Keys

Positions = Literal["query", "mean", "step", "every"]

# The latch stores how many of the refusal's tokens are written in eight bits.
LONGEST_REFUSAL = 255


class Check(ABC):
    """A test of key vectors that decides over a refusal.

    ``layers``: ascending; a key is the concatenation of these layers' key vectors, D = len(layers) * F numbers.
    ``keys``: what a layer's key is, if not the key vector of an FFL.
    ``skills``: a name per region. ``refusal``: int64 [tokens], the answer to a refused row, the end-of-text token last.
    ``other_ends``: the other tokens at which decode loops of the model end a text. ``positions``: ``query`` tests the
    last real token of each run that has no past or more than one new token, ``mean`` the mean key of such a run's query
    (``first_of_mean``), ``step`` the last real token of every run, ``every`` all new tokens. ``query_end``: the tokens
    that every query ends with, as a chat template's opening of the answer; where there are any, ``query`` and ``mean``
    take several new tokens with a past for a query only if they end with them (or are their end): others are drafts of
    an answer, or a part of a prompt. ``query_start``: the tokens that open a query, from which on ``mean`` counts.
    ``alpha``: float64 [regions], the margin up to which a key lies in each.
    """

    layers: tuple[int, ...]
    keys: Keys
    skills: tuple[str, ...]
    refusal: Integers
    other_ends: tuple[int, ...]
    positions: Positions
    query_end: tuple[int, ...]
    query_start: tuple[int, ...]
    alpha: Floats

    @abstractmethod
    def margins(self, keys: Floats) -> Floats:
        """How far keys are from the middle of every region: float [n, D] to float64 [n, regions]."""

    @abstractmethod
    def slope(self, keys: Floats, region: int) -> Floats:
        """Where the margin to a region grows, for a search: float [n, D] to float64 [n, D], its gradient smoothed."""

    def decisive(self, tokens: Sequence[int]) -> slice:
        """Which of a prompt's ``tokens``, all read in one run, have the key that decides over it, as their mean.

        It is the last one unless the mean of several is tested.
        """
        return slice(first_of_mean(tokens, self.query_start) if self.positions == "mean" else len(tokens) - 1, None)

    def is_inside(self, margins: Floats) -> NDArray[np.bool_]:
        """Which keys lie in a region, by their margins: float64 [n, regions] to bool [n]."""
        return np.asarray((margins <= self.alpha).any(axis=1))

    @property
    def is_bounded(self) -> bool:
        """Whether keys that are far away are outside of all regions; else tokens of all prompts can be inside."""
        return True

    @abstractmethod
    def nearness_of_each(self, margins: Floats) -> Floats:
        """Margins [n, regions] on the scale of their regions, 1 on the boundary and less inside: float64, likewise."""

    def nearness(self, margins: Floats) -> Floats:
        """The nearness to the nearest region, at most 1 inside: float64 [n, regions] to [n]."""
        nearest: Floats = self.nearness_of_each(margins).min(axis=1)
        return nearest


def first_of_mean(tokens: Sequence[int], query_start: Sequence[int], *, has_past: bool = False) -> int:
    """Where those of a run's real ``tokens`` begin whose mean key is tested; they go on to the run's end.

    That is where ``query_start`` last begins; where it is empty or is not there, they are all. The first token of a
    text never counts if there are others: attention rests on it, and its key is huge and the same in all texts.
    """
    least = 0 if has_past or len(tokens) < 2 else 1
    opening = list(query_start)
    for start in range(len(tokens) - len(opening), least, -1) if opening else ():
        if list(tokens[start : start + len(opening)]) == opening:
            return start
    return least
