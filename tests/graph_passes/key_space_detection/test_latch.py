"""The latch: its code survives every cache type, is read back by the graph, and nothing else is taken for it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bakeout.graph_passes.key_space_detection.latch import latch_codes, latch_signs, read_latch
from bakeout.graph_passes.key_space_detection.window import read_window
from bakeout.models.plan import LONGEST_REFUSAL

from tests.graph_passes.small_graphs import evaluate

HEADS, HEAD_SIZE = 2, 16
CACHE_TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def _read(past: NDArray[Any], mask: Any, longest: int = 9, window: int = 1) -> tuple[list[bool], list[int]]:
    mask = np.array(mask, np.int64)

    def build(builder: Any, past: Any, input_ids: Any, mask: Any) -> Any:
        newest = read_window(builder, input_ids, mask).newest_past
        read = read_latch(builder, past, newest, longest, past_head_size)
        return [read.latched, read.count]

    past_head_size = past.shape[-1]
    latched, count = evaluate(build, {"past": past, "input_ids": np.zeros((len(mask), window), np.int64), "mask": mask})
    return latched[:, 0].tolist(), count[:, 0].tolist()


def _ordinary(rows: int, slots: int, dtype: Any = np.float32) -> NDArray[Any]:
    return (100 * np.random.default_rng(0).standard_normal((rows, HEADS, slots, HEAD_SIZE))).astype(dtype)


@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("head_size", [8, 64, 80, 128, 256])
def test_every_code_is_exact_in_every_cache_type(dtype: Any, head_size: int) -> None:
    codes = latch_codes(LONGEST_REFUSAL, head_size)
    assert np.array_equal(codes.astype(dtype).astype(np.float32), codes)
    assert len(np.unique(codes, axis=0)) == LONGEST_REFUSAL


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_count_is_read_back(dtype: Any) -> None:
    past = np.repeat(latch_codes(LONGEST_REFUSAL, 8)[:, None, None], HEADS, axis=1).astype(dtype)
    mask = np.ones((LONGEST_REFUSAL, 2))
    assert _read(past, mask, LONGEST_REFUSAL) == ([True] * LONGEST_REFUSAL, list(range(1, LONGEST_REFUSAL + 1)))


def test_counts_beyond_the_refusal_are_not_ours() -> None:
    past = np.repeat(latch_codes(9, HEAD_SIZE)[-2:, None, None], HEADS, axis=1)
    assert _read(past, np.ones((2, 2)), longest=8) == ([True, False], [8, 1])


def test_ordinary_values_are_not_latched() -> None:
    assert _read(_ordinary(50, 3), np.ones((50, 4)))[0] == [False] * 50


@pytest.mark.parametrize("change", [-1.0, 0.75, 4.0, np.nan, np.inf])
def test_one_element_that_differs_is_enough(change: float) -> None:
    past = np.tile(latch_codes(1, HEAD_SIZE)[0], (HEAD_SIZE + 1, HEADS, 1, 1))
    for row in range(HEAD_SIZE):
        past[row, 0, 0, row] *= change
    assert _read(past, np.ones((HEAD_SIZE + 1, 2)))[0] == [False] * HEAD_SIZE + [True]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_each_row_is_read_at_its_newest_real_past_slot(data: st.DataObject) -> None:
    rows, slots, window = (data.draw(st.integers(1, 4)) for _ in range(3))
    mask = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 1), min_size=slots + window, max_size=slots + window),
                min_size=rows,
                max_size=rows,
            )
        )
    )
    counts = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 9), min_size=slots, max_size=slots), min_size=rows, max_size=rows))
    )
    past = _ordinary(rows, slots)
    codes = latch_codes(9, HEAD_SIZE)
    for row, slot in np.argwhere(counts > 0):
        past[row, :, slot] = codes[counts[row, slot] - 1]
    newest = [max(np.flatnonzero(mask[row, :slots]), default=None) for row in range(rows)]
    expected = [0 if slot is None else counts[row, slot] for row, slot in enumerate(newest)]
    latched, count = _read(past, mask, window=window)
    assert latched == [said > 0 for said in expected]
    assert count == [max(said, 1) for said in expected]


def test_an_empty_past_is_not_latched() -> None:
    assert _read(_ordinary(2, 0), np.ones((2, 3)), window=3) == ([False, False], [1, 1])


def test_the_signs_are_the_same_everywhere() -> None:
    assert latch_signs(16).tolist() == latch_signs(300)[:16].tolist()
    assert set(latch_signs(300)) == {-1.0, 1.0}
    assert latch_signs(8).tolist() == [-1, 1, 1, -1, -1, -1, 1, 1]
