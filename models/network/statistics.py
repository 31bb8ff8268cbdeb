"""Counts, means and variances that can be gathered in parts and merged, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Floats


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and M2 (the sum of squared differences from the mean) of samples; the arrays have one shape."""

    count: int
    mean: Floats
    m2: Floats

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Moments:
        """The moments of no sample: merging them changes nothing."""
        return cls(0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, samples: Floats) -> Moments:
        """The moments of samples [n, ...], in two passes: the mean first, then the differences from it."""
        samples = np.asarray(samples, dtype=np.float64)
        if len(samples) == 0:
            return cls.none(samples.shape[1:])
        mean = samples.mean(axis=0)
        return cls(len(samples), mean, np.square(samples - mean).sum(axis=0))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples (Chan, Golub and LeVeque, 1979): stable, in any order and grouping."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        m2 = self.m2 + other.m2 + np.square(difference) * (self.count * other.count / count)
        return Moments(count, mean, m2)

    @property
    def deviation(self) -> Floats:
        """The sample standard deviation (n - 1). Raises ``BakeoutError`` below two samples."""
        if self.count < 2:
            raise BakeoutError(
                f"A deviation needs at least 2 tokens; {self.count} were probed.", "Give more data to probe."
            )
        return np.sqrt(self.m2 / (self.count - 1))


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """The pre-activations of every neuron over the probed tokens: moments with arrays of shape [layers, F]."""

    moments: Moments

    @property
    def tokens(self) -> int:
        """How many tokens were probed."""
        return self.moments.count

    @property
    def layers(self) -> tuple[Moments, ...]:
        """Layer by layer, with arrays of shape [F]."""
        return tuple(
            Moments(self.moments.count, mean, m2) for mean, m2 in zip(self.moments.mean, self.moments.m2, strict=True)
        )


@dataclass(frozen=True, eq=False)
class MixtureStatistics:
    """As ``NeuronStatistics``, of a mixture of experts: FFLs of any widths, and experts that see tokens of their own.

    ``tokens``: how many were probed. ``layers``: the moments of each FFL, [F]; experts are the last ones, if they were
    probed.
    """

    tokens: int
    layers: tuple[Moments, ...]


@dataclass(frozen=True, eq=False)
class KeyMagnitudes:
    """The activity of every neuron: the sum of |key| over the probed tokens, float64 [layers, F]."""

    tokens: int
    total: Floats

    @property
    def mean(self) -> Floats:
        """Mean |key| per token: float64 [layers, F]. Raises ``BakeoutError`` where no token was probed."""
        if self.tokens == 0:
            raise BakeoutError("A mean needs at least one token; none was probed.", "Give more data to probe.")
        return self.total / self.tokens

    def merge(self, other: KeyMagnitudes) -> KeyMagnitudes:
        """The magnitudes over both data sets, probed on one model."""
        return KeyMagnitudes(self.tokens + other.tokens, self.total + other.total)

    @property
    def layers(self) -> tuple[Floats, ...]:
        """The sums of each layer, [F]."""
        return tuple(self.total)


@dataclass(frozen=True, eq=False)
class MixtureMagnitudes:
    """As ``KeyMagnitudes``, of a mixture of experts: the sums of each FFL, [F], experts' last if they were probed."""

    tokens: int
    layers: tuple[Floats, ...]


def shape_of(widths: Sequence[int]) -> str:
    """Layers and their widths, for errors."""
    return f"{len(widths)} x {' or '.join(map(str, sorted(set(widths))))}"
