"""How well margins separate queries to refuse from others; the choice of layers and cubes is based on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import binomtest, norm, rankdata

from bakeout.models.plan import Floats

CONFIDENCE = 0.95
# Of a normal distribution, one query in 4,300 lies this many deviations or more before the mean.
CLEARANCE = 3.5
# Queries of a name from which its deviation is estimated, at least.
_FEWEST = 30


@dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve, and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Roc:
    """Shares of queries inside the cubes, by alpha: float64 [n] each, ascending."""

    alpha: Floats
    forget: Floats
    retain: Floats


@dataclass(frozen=True)
class Share:
    """``count`` of ``queries``, with its Clopper-Pearson interval."""

    count: int
    queries: int

    @property
    def value(self) -> float:
        """The share itself; 0 if there are no queries."""
        return self.count / self.queries if self.queries else 0.0

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Clopper and Pearson's exact interval; (0, 1) if there are no queries."""
        return _exact_interval(self.count, self.queries, confidence)


@cache
def _exact_interval(count: int, queries: int, confidence: float) -> tuple[float, float]:
    # A search asks for the same few thousands of times, and each takes milliseconds.
    if queries == 0:
        return 0.0, 1.0
    interval = binomtest(count, queries).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def auroc(forget: Floats, retain: Floats, confidence: float = CONFIDENCE) -> Auroc:
    """The chance that a forget query's margin [n] is below a retain query's [m], ties counting half (Mann-Whitney).

    The interval is DeLong's (1988), normal and clipped to [0, 1]. If no pair is out of order, its variance is 0 and
    the interval has no width. Our reading for this case: the n (or m, if fewer) pairs that share no query are
    independent trials, and the bound is the exact one for trials that never failed, (1 - confidence) / 2 to the power 1
    / n. No interval ends nearer to 1 (or 0) than this bound.
    """
    n, m = len(forget), len(retain)
    if n == 0 or m == 0:
        raise ValueError("an area under a curve needs queries of both kinds")
    together = rankdata(np.concatenate([forget, retain]))
    # For each query: the share of the other kind that it is in order with.
    of_forget = 1 - (together[:n] - rankdata(forget)) / m
    of_retain = (together[n:] - rankdata(retain)) / n
    value = float(of_forget.mean())
    error = math.sqrt(_variance_of_mean(of_forget) + _variance_of_mean(of_retain))
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    nearest = ((1 - confidence) / 2) ** (1 / min(n, m))
    low = min(max(0.0, value - reach), nearest)
    high = max(min(1.0, value + reach), 1 - nearest)
    return Auroc(value, low, high)


def distance(forget: Floats, retain: Floats) -> float:
    """How far retain margins [m] lie from forget margins [n]: the difference of means over the sum of deviations.

    If both are normal, as projections on a discriminant are about, then regions of some size miss as many of the one as
    they hold of the other: the normal tail beyond this distance. It tells apart what no query of a small sample does.
    """
    spread = float(forget.std() + retain.std())
    apart = float(retain.mean() - forget.mean())
    return apart / spread if spread else math.copysign(math.inf, apart)


def harmonic_mean(first: float, second: float) -> float:
    """High only where both are; the lower one where it is not positive."""
    if min(first, second) <= 0 or first == second:
        return min(first, second)
    return statistics.harmonic_mean([first, second])


def reach_before(retained: Iterable[Floats]) -> float:
    """How far alpha may go before what is retained: ``CLEARANCE`` deviations before the mean of the nearest name.

    ``retained``: margins of fresh queries, [n] of each name. No farther than the nearest query, either: a name can have
    several modes. -inf where a name has too few queries to know its deviation. (Our reading: fresh wordings of a skill
    lie in the room between it and what is retained.)
    """
    names = list(retained)
    if not names or min(map(len, names)) < _FEWEST:
        return -math.inf
    return min(min(float(own.mean() - CLEARANCE * own.std()), _before(float(own.min()))) for own in names)


def _before(margin: float) -> float:
    # A query at alpha is inside.
    return math.nextafter(margin, -math.inf)


def roc(forget: Floats, retain: Floats) -> Roc:
    """The shares of forget and retain queries with margins [n], [m] of at most alpha, at every margin that occurs."""
    alpha = np.unique(np.concatenate([forget, retain]))
    return Roc(alpha, share_inside(forget, alpha), share_inside(retain, alpha))


def share_inside(margins: Floats, alpha: Floats) -> Floats:
    """The share of queries whose margin [n] is at most alpha [a]: float64 [a] (the paper's Figure 5)."""
    shares: Floats = np.searchsorted(np.sort(margins), alpha, side="right") / len(margins)
    return shares


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
