"""Padding: tokens where they belong, and a mask that says where that is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.data.padding import left_padded, right_padded


@given(st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=5))
@pytest.mark.parametrize("padded", [left_padded, right_padded])
def test_the_mask_gives_back_the_sequences(padded: object, sequences: list[list[int]]) -> None:
    assert callable(padded)
    ids, mask = padded(sequences, 100)
    assert ids.dtype == mask.dtype == np.int64
    assert [row[real == 1].tolist() for row, real in zip(ids, mask, strict=True)] == sequences
    assert (ids[mask == 0] == 100).all()


def test_sides() -> None:
    assert left_padded([[1, 2], [3]])[0].tolist() == [[1, 2], [0, 3]]
    assert right_padded([[1, 2], [3]])[0].tolist() == [[1, 2], [3, 0]]
