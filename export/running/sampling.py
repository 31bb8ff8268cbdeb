"""Choosing the next token from logits: greedy, or drawn from a seeded stream per row. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError

Integers = NDArray[np.int64]
Logits = NDArray[np.float32]
Choose = Callable[[Logits], Integers]


def greedy(logits: Logits) -> Integers:
    """The most probable token of each row: float32 [rows, vocabulary] to int64 [rows]."""
    most_probable: Integers = logits.argmax(axis=-1).astype(np.int64)
    return most_probable


@dataclass(frozen=True)
class Sampling:
    """Draw tokens from softmax(logits / temperature), among the most probable that reach ``top_p`` together.

    Row i of the prompts draws from its own stream, seeded with (``seed``, i), so its text does not depend on the
    batch it is in. Raises ``BakeoutError`` for a temperature or ``top_p`` out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise BakeoutError(f"The temperature {self.temperature} is not positive.", "For greedy decoding give none.")
        if not 0 < self.top_p <= 1:
            raise BakeoutError(f"top_p is {self.top_p}.", "Give a number above 0 and at most 1.")
        if self.seed < 0:
            raise BakeoutError(f"The seed {self.seed} is negative.", "Give 0 or more.")

    def chooser(self, rows: Sequence[int]) -> Choose:
        """The function that chooses a token for each of these rows, step after step."""
        streams = [np.random.default_rng((self.seed, row)) for row in rows]

        def choose(logits: Logits) -> Integers:
            return np.array([self._draw(row, stream) for row, stream in zip(logits, streams, strict=True)], np.int64)

        return choose

    def _draw(self, logits: Logits, stream: np.random.Generator) -> int:
        scaled = logits.astype(np.float64) / self.temperature
        likelihood = np.exp(scaled - scaled.max())
        order = np.argsort(-likelihood, kind="stable")
        reached = np.cumsum(likelihood[order])
        # The most probable tokens up to and including the one that reaches top_p.
        kept = min(int(np.searchsorted(reached, self.top_p * reached[-1])) + 1, len(reached))
        drawn = np.searchsorted(reached[:kept], stream.random() * reached[kept - 1], side="right")
        return int(order[min(int(drawn), kept - 1)])
