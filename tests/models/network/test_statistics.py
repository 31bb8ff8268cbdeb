"""Moments merge like sets of samples, in any order and grouping, and survive their file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from bakeout.models.errors import BakeoutError
from bakeout.models.network.statistics import Moments, NeuronStatistics


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


def _statistics() -> NeuronStatistics:
    samples = np.random.default_rng(0).normal(size=(20, 4, 6))
    return NeuronStatistics(Moments.of(samples))


def test_statistics_survive_their_file_and_have_one_form(tmp_path: Path) -> None:
    original = _statistics()
    original.save(tmp_path / "one.safetensors")
    read = NeuronStatistics.load(tmp_path / "one.safetensors")
    assert read.tokens == 20
    np.testing.assert_array_equal(read.moments.mean, original.moments.mean)
    np.testing.assert_array_equal(read.moments.m2, original.moments.m2)
    read.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_statistics_of_two_sets_merge() -> None:
    one = _statistics()
    assert one.merge(one).tokens == 40
    np.testing.assert_allclose(one.merge(one).moments.mean, one.moments.mean, rtol=1e-12)


@pytest.mark.parametrize(
    ("arrays", "metadata", "says"),
    [
        ({"mean": np.zeros((2, 3))}, {"schema": 1, "tokens": 4}, "m2"),
        ({"mean": np.zeros((2, 3)), "m2": np.zeros((2, 3))}, None, "not a file of neuron statistics"),
        ({"mean": np.zeros((2, 3)), "m2": np.zeros((2, 3))}, [], "not a file of neuron statistics"),
        ({"mean": np.zeros((2, 3)), "m2": np.zeros((2, 3))}, {"schema": 2, "tokens": 4}, "schema 2"),
        ({"mean": np.zeros((2, 3)), "m2": np.zeros((2, 2))}, {"schema": 1, "tokens": 4}, "contradict"),
        ({"mean": np.zeros((2, 3), np.float32), "m2": np.zeros((2, 3))}, {"schema": 1, "tokens": 4}, "contradict"),
        ({"mean": np.zeros((2, 3)), "m2": np.zeros((2, 3))}, {"schema": 1, "tokens": -4}, "contradict"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], metadata: object, says: str) -> None:
    path = tmp_path / "statistics.safetensors"
    path.write_bytes(save(arrays, None if metadata is None else {"bakeout": json.dumps(metadata)}))
    with pytest.raises(BakeoutError, match=says):
        NeuronStatistics.load(path)


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    with pytest.raises(BakeoutError, match="cannot be read"):
        NeuronStatistics.load(path)
    _statistics().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BakeoutError, match="not a file of neuron statistics"):
        NeuronStatistics.load(path)
