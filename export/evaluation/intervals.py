"""Confidence intervals of measured shares and of their differences, at 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

CONFIDENCE = 0.95
# The quantile of the standard normal distribution at 1 - (1 - CONFIDENCE) / 2.
_QUANTILE = 1.959963984540054
_RESAMPLES = 2000


def share_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share (Journal of the American Statistical Association 22, 1927, pp. 209-212)."""
    share = successes / trials
    width = 2 * (trials + _QUANTILE**2)
    centre = (2 * trials * share + _QUANTILE**2) / width
    reach = _QUANTILE / width * math.sqrt(4 * trials * share * (1 - share) + _QUANTILE**2)
    return (centre - reach if successes else 0.0), (centre + reach if successes < trials else 1.0)


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    """The difference of two shares, ``second`` minus ``first``, of the same prompts: bool [prompts] each.

    Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998, pp. 2635-2650, method
    10): it keeps its coverage where hardly any prompt differs, where McNemar's normal approximation does not.
    """
    both = int((first & second).sum())
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    neither = len(first) - both - gained - lost
    product = float(both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    covariance = float(both) * neither - float(gained) * lost
    if covariance > 0:
        covariance = max(covariance - len(first) / 2, 0.0)
    correlation = covariance / math.sqrt(product) if product else 0.0
    return _hybrid_score(both + lost, len(first), both + gained, len(first), correlation)


def unpaired_difference(first: int, first_trials: int, second: int, second_trials: int) -> Interval:
    """The difference of two shares of different prompts, or of the same where it is not known which succeeded.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, pp. 873-890, method 10).
    """
    return _hybrid_score(first, first_trials, second, second_trials, 0.0)


def _hybrid_score(first: int, first_trials: int, second: int, second_trials: int, correlation: float) -> Interval:
    low_first, high_first = share_interval(first, first_trials)
    low_second, high_second = share_interval(second, second_trials)
    share_first, share_second = first / first_trials, second / second_trials
    difference = share_second - share_first

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(down**2 - 2 * correlation * down * up + up**2, 0.0))

    low = difference - reach(share_second - low_second, high_first - share_first)
    high = difference + reach(high_second - share_second, share_first - low_first)
    return max(low, -1.0), min(high, 1.0)


def bootstrap(units: int, statistic: Callable[[NDArray[np.int64]], float]) -> Interval:
    """The percentile bootstrap of ``statistic``, which is given the indices of a resample, int64 [units]. Seeded."""
    generator = np.random.default_rng(0)
    values = [statistic(generator.integers(units, size=units)) for _ in range(_RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: NDArray[np.float64]) -> Interval | None:
    """The interval of the mean of values from 0 to 1: the percentile bootstrap. None for fewer than two.

    Where all are 0, or all 1, every resample is alike, which is no certainty: then it is that of a share.

    >>> mean_interval(np.zeros(8))
    (0.0, 0.3244157...)
    """
    if len(values) < 2:
        return None
    if bool(np.all(values == 0)) or bool(np.all(values == 1)):
        return share_interval(int(values.sum()), len(values))
    return bootstrap(len(values), lambda rows: float(values[rows].mean()))


def ratio_interval(values: NDArray[np.float64], others: NDArray[np.float64]) -> Interval | None:
    """The interval of the ratio of two means of the same rows: the percentile bootstrap over rows.

    Where all ``values`` are 0, every resample is, which is no certainty: then it reaches to a share's upper end over
    the mean of ``others``. None where a resample has no mean to divide by.
    """
    of = float(others.mean())
    if not values.any() and of:
        return 0.0, share_interval(0, len(values))[1] / of

    def ratio(rows: NDArray[np.int64]) -> float:
        below = others[rows].mean()
        return float(values[rows].mean() / below) if below else float("nan")

    interval = bootstrap(len(values), ratio)
    return interval if np.isfinite(interval).all() else None
