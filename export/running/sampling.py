"""Choosing the next token from logits: greedy, or drawn from a seeded stream per row. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError

Integers = NDArray[np.int64]
Logits = NDArray[np.float32]
Choose = Callable[[Logits], Integers]
# Tokens less probable than this share of the most probable one are put in order only where a draw reaches them.
_RARE = 1e-4


def greedy(logits: Logits) -> Integers:
    """The most probable token of each row: float32 [rows, vocabulary] to int64 [rows]."""
    most_probable: Integers = logits.argmax(axis=-1).astype(np.int64)
    return most_probable


@dataclass(frozen=True)
class Given:
    """Choose the tokens of ``answers``, which are known: that of row i of the prompts is answer i."""

    answers: Sequence[Sequence[int]]

    def chooser(self, rows: Sequence[int]) -> Choose:
        """The function that gives each of these rows its next token, step after step; behind an answer its last."""
        steps = count()

        def choose(logits: Logits) -> Integers:
            step = next(steps)
            return np.array([self.answers[row][step:][:1] or self.answers[row][-1:] for row in rows], np.int64)[:, 0]

        return choose


@dataclass(frozen=True)
class Sampling:
    """Draw tokens from softmax(logits / temperature), among the most probable that reach ``top_p`` together.

    Row i of the prompts draws from its own stream, seeded with (``seed``, i), so its text does not depend on the
    batch it is in. With ``prompts``, row i is prompt i mod ``prompts`` of draw i // ``prompts``, and draw n is what
    ``seed`` + n would be for these prompts alone. Raises ``BakeoutError`` for a temperature or ``top_p`` out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    prompts: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise BakeoutError(f"The temperature {self.temperature} is not positive.", "For greedy decoding give none.")
        if not 0 < self.top_p <= 1:
            raise BakeoutError(f"top_p is {self.top_p}.", "Give a number above 0 and at most 1.")
        if self.seed < 0:
            raise BakeoutError(f"The seed {self.seed} is negative.", "Give 0 or more.")

    def chooser(self, rows: Sequence[int]) -> Choose:
        """The function that chooses a token for each of these rows, step after step."""
        places = [divmod(row, self.prompts) if self.prompts else (0, row) for row in rows]
        streams = [np.random.default_rng((self.seed + draw, row)) for draw, row in places]

        def choose(logits: Logits) -> Integers:
            return np.array([self._draw(row, stream) for row, stream in zip(logits, streams, strict=True)], np.int64)

        return choose

    def _draw(self, logits: Logits, stream: np.random.Generator) -> int:
        scaled = logits.astype(np.float64) / self.temperature
        likelihood = np.exp(scaled - scaled.max())
        point, whole = stream.random(), likelihood.sum()
        needed = whole * (point if self.top_p == 1 else self.top_p)
        order = _in_order(likelihood, _RARE)
        reached = np.cumsum(likelihood[order])
        if reached[-1] <= needed:
            order = _in_order(likelihood, 0.0)
            reached = np.cumsum(likelihood[order])
        if self.top_p < 1:
            # The most probable tokens up to and including the one that reaches top_p.
            reached = reached[: int(np.searchsorted(reached, needed)) + 1]
            whole = reached[-1]
        drawn = np.searchsorted(reached, point * whole, side="right")
        return int(order[min(int(drawn), len(reached) - 1)])


def _in_order(likelihood: NDArray[np.float64], least: float) -> NDArray[np.intp]:
    """The tokens that are at least so probable, the most probable first."""
    tokens = np.flatnonzero(likelihood >= least)
    return tokens[np.argsort(-likelihood[tokens], kind="stable")]
