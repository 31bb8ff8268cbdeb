"""Confidence intervals: values from the literature, and how often they hold what they are to hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bakeout.export.evaluation.intervals import (
    bootstrap,
    mean_interval,
    paired_difference,
    share_interval,
    unpaired_difference,
)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_values_that_are_all_alike_are_no_certainty(value: float) -> None:
    assert mean_interval(np.full(8, value)) == share_interval(int(8 * value), 8)
    assert mean_interval(np.full(1, value)) is None


# Newcombe, Statistics in Medicine 17 (1998), pp. 857-872, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert share_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_a_share_has_scipys_interval_to_the_last_bit() -> None:
    for trials in (1, 2, 7, 30, 64, 101, 263):
        for successes in range(trials + 1):
            interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
            assert share_interval(successes, trials) == (interval.low, interval.high)


# Newcombe, Statistics in Medicine 17 (1998), pp. 873-890, table II, method 10; the paper has first minus second.
@pytest.mark.parametrize(
    ("first", "first_trials", "second", "second_trials", "low", "high"),
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (10, 10, 0, 20, 0.6791, 1.0),
    ],
)
def test_two_samples_have_newcombes_interval(
    first: int, first_trials: int, second: int, second_trials: int, low: float, high: float
) -> None:
    found = unpaired_difference(second, second_trials, first, first_trials)
    assert found == pytest.approx((low, high), abs=6e-5)


def test_pairs_have_newcombes_interval() -> None:
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014): airway hyper-responsiveness before and after."""
    before = np.array([1] * 1 + [1] * 1 + [0] * 7 + [0] * 12, dtype=bool)
    after = np.array([1] * 1 + [0] * 1 + [1] * 7 + [0] * 12, dtype=bool)
    assert paired_difference(after, before) == pytest.approx((-0.507, -0.026), abs=6e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_intervals_hold_the_difference_and_turn_with_the_pairs(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    low, high = paired_difference(first, second)
    assert -1 <= low <= second.mean() - first.mean() <= high <= 1
    assert paired_difference(second, first) == pytest.approx((-high, -low))


def test_pairs_that_agree_tell_more_than_two_samples() -> None:
    first = np.arange(200) < 180
    second = np.arange(200) < 176
    low, high = paired_difference(first, second)
    wide_low, wide_high = unpaired_difference(180, 200, 176, 200)
    assert high - low < 0.5 * (wide_high - wide_low)
    # Hardly any pair differs: a normal approximation would call four losses and no gain certain.
    assert low < -0.02 <= high


@pytest.mark.parametrize(
    ("both", "lost", "gained"), [(0.9, 0.05, 0.05), (0.02, 0.95, 0.01), (0.97, 0.02, 0.01), (0.3, 0.3, 0.1)]
)
def test_paired_intervals_cover_the_true_difference(both: float, lost: float, gained: float) -> None:
    prompts, times = 60, 3000
    counts = np.random.default_rng(0).multinomial(
        prompts, [both, lost, gained, max(1 - both - lost - gained, 0)], times
    )
    cells, often = np.unique(counts, axis=0, return_counts=True)
    covered = 0
    for (a, b, c, d), weight in zip(cells, often, strict=True):
        first = np.repeat([True, True, False, False], [a, b, c, d])
        second = np.repeat([True, False, True, False], [a, b, c, d])
        low, high = paired_difference(first, second)
        covered += int(weight) * (low <= gained - lost <= high)
    assert covered / times >= 0.93


def test_a_bootstrapped_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap(len(values), lambda chosen: float(values[chosen].mean()))
    reach = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)
    assert bootstrap(len(values), lambda chosen: float(values[chosen].mean())) == (low, high)
