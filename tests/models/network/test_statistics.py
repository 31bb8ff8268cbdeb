"""Moments merge like sets of samples, in any order and grouping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.errors import BakeoutError
from bakeout.models.network.statistics import Moments


@st.composite
def _samples(draw: st.DrawFn) -> np.ndarray:
    """Up to 40 samples of 3 variables, with means up to a thousand deviations away."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.normal(size=(draw(st.integers(0, 40)), 3)) + generator.uniform(-1000, 1000, size=3)


def _assert_same(one: Moments, other: Moments) -> None:
    assert one.count == other.count
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-9)
    # Sets of differing means give a large M2 in which rounding is relative to the whole.
    np.testing.assert_allclose(one.m2, other.m2, rtol=1e-9, atol=1e-18)


@given(_samples())
def test_moments_are_those_of_numpy(samples: np.ndarray) -> None:
    moments = Moments.of(samples)
    assert moments.count == len(samples)
    if len(samples) >= 2:
        np.testing.assert_allclose(moments.mean, samples.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.deviation, samples.std(axis=0, ddof=1), rtol=1e-12)


@given(_samples(), _samples())
def test_merging_is_pooling_and_commutes(first: np.ndarray, second: np.ndarray) -> None:
    merged = Moments.of(first).merge(Moments.of(second))
    _assert_same(merged, Moments.of(np.concatenate([first, second])))
    _assert_same(merged, Moments.of(second).merge(Moments.of(first)))


@given(_samples(), _samples(), _samples())
def test_merging_is_associative(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> None:
    a, b, c = Moments.of(first), Moments.of(second), Moments.of(third)
    _assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(_samples())
def test_merging_nothing_changes_nothing(samples: np.ndarray) -> None:
    moments = Moments.of(samples)
    for merged in (moments.merge(Moments.none((3,))), Moments.none((3,)).merge(moments)):
        assert merged.count == moments.count
        np.testing.assert_array_equal(merged.mean, moments.mean)
        np.testing.assert_array_equal(merged.m2, moments.m2)


def test_a_deviation_needs_two_samples() -> None:
    with pytest.raises(BakeoutError, match="at least 2 tokens"):
        _ = Moments.of(np.ones((1, 3))).deviation
