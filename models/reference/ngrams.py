"""What token sequences have in common with a data set: its runs of tokens, and the frame around its prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Fewer prompts share their own words, not a template's.
_ENOUGH_PROMPTS = 8
_LONGEST_PREFIX, _LONGEST_SUFFIX = 8, 16
# An odd multiplier mixes a run's tokens into 64 bits; two different runs that meet are one token run avoided in vain.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class NGrams:
    """The runs of ``length`` tokens in ``sequences``, as hashes: 8 bytes each, however long the data."""

    def __init__(self, sequences: Iterable[Sequence[int]], length: int) -> None:
        self.length = length
        runs = [_hashes(np.array([ids], dtype=np.int64), length)[0] for ids in sequences if len(ids) >= length]
        self._known = np.unique(np.concatenate(runs)) if runs else np.empty(0, np.uint64)

    def are_in(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some sequences hold a run of the data: int64 [n, tokens] to bool [n]."""
        if ids.shape[1] < self.length:
            return np.zeros(len(ids), dtype=bool)
        return np.asarray(np.isin(_hashes(ids, self.length), self._known).any(axis=1))


def common_frame(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """What all of some prompts begin and end with, a chat template's tokens as a rule: at most 8 and 16 tokens.

    Nothing where fewer than eight prompts differ: what so few have in common may be their own words.
    """
    different = {tuple(prompt) for prompt in prompts if prompt}
    if len(different) < _ENOUGH_PROMPTS:
        return [], []
    first, last = min(different), max(different)
    before = _shared(first, last)
    backwards = [prompt[::-1] for prompt in different]
    first, last = min(backwards), max(backwards)
    after = _shared(first, last)[::-1]
    return before[:_LONGEST_PREFIX], after[-_LONGEST_SUFFIX:]


def _shared(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What two sequences begin with; of the first and last in order, it is what all between them begin with."""
    shared = []
    for token, same in zip(one, other, strict=False):
        if token != same:
            break
        shared.append(token)
    return shared


def _hashes(ids: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """A hash for every run of ``length`` tokens: int64 [n, tokens] to [n, tokens - length + 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), length, axis=1)
    hashes = np.zeros(windows.shape[:2], dtype=np.uint64)
    for place in range(length):
        hashes = (hashes ^ windows[..., place]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes
