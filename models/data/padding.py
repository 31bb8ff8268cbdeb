"""Sequences of different lengths as one batch: the only place where token ids are padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def left_padded(sequences: Sequence[Sequence[int]], padding: int = 0) -> tuple[Integers, Integers]:
    """Token ids, padded on the left, and their attention mask (0 at padding): int64 [sequences, longest] each.

    >>> ids, mask = left_padded([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(map(len, sequences))
    return _filled(sequences, [slice(width - len(ids), None) for ids in sequences], width, padding)


def right_padded(sequences: Sequence[Sequence[int]], padding: int = 0) -> tuple[Integers, Integers]:
    """Token ids, padded on the right, and their attention mask (0 at padding): int64 [sequences, longest] each.

    >>> ids, mask = right_padded([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    width = max(map(len, sequences))
    return _filled(sequences, [slice(None, len(ids)) for ids in sequences], width, padding)


def _filled(
    sequences: Sequence[Sequence[int]], places: Sequence[slice], width: int, padding: int
) -> tuple[Integers, Integers]:
    ids = np.full((len(sequences), width), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
        ids[row, place] = sequence
        mask[row, place] = 1
    return ids, mask
