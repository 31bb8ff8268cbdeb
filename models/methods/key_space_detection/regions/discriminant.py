"""Linear discriminant analysis with shrunk covariances, of more dimensions than keys (our reading)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.regions.shrinkage import Shrinkage, ledoit_wolf
from bakeout.models.plan import Floats, Floats32

# Dimensions that are computed at a time: what is held beside the keys does not grow with the number of layers.
_BLOCK = 4096
# The least share of a dimension's variance that counts as shrunk: of a few keys nothing would be, and of a covariance
# without any there is no inverse.
_LEAST = 1e-6


def discriminant(
    skill: Floats | Floats32, retained: Floats | Floats32, dtype: DTypeLike = np.float64
) -> tuple[Floats, float]:
    """Weight [D] and bias of the margin -(weight . key + bias), from keys of ``skill`` [n, D] and ``retained`` [m, D].

    Linear discriminant analysis on standardised keys: weight = S^-1 (skill's mean - retained mean), S the classes'
    covariances, each shrunk by Ledoit and Wolf's share in units of its own deviations, averaged by their numbers of
    rows. That is scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")``. The margin is scaled
    to the standard deviation within a class, and 0 at the skill's mean: alpha takes the intercept's place. Computed in
    ``dtype``; the weight is float64.

    Raises ``BakeoutError`` where both have the same mean.
    """
    pair = Pair(skill, retained, dtype)
    shrinkages = shrinkages_of(pair)
    weight = _primal(pair, shrinkages) if pair.dimensions <= pair.rows else _dual(pair, shrinkages)
    parts = [(part.difference, part.deviation) for part in pair.parts()]
    difference, deviation = (np.concatenate(values) for values in zip(*parts, strict=True))
    scaled = np.asarray(weight / (_spread(float(weight @ difference)) * deviation), dtype=np.float64)
    return scaled, -float(scaled @ skill.mean(axis=0, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Part:
    """Some dimensions, ``columns``, of both classes' keys, in units of the ``deviation`` [B] of all keys together.

    ``mean``: the retained keys', as they are; ``difference``: the skill's mean less the retained one; ``centred``: each
    class's keys less their mean [n, B], and its ``own`` deviations.
    """

    columns: slice
    mean: Floats
    deviation: Floats
    difference: Floats
    centred: Sequence[Floats]
    own: Sequence[Floats]

    def within(self, shrinkages: Sequence[Shrinkage]) -> tuple[Floats, Floats]:
        """R [n + m, B] and the diagonal [B] of the covariance within the classes, diag + R^T R."""
        rows = sum(map(len, self.centred))
        classes = list(zip(self.centred, self.own, shrinkages, strict=True))
        diagonal = [len(keys) / rows * shrunk.share * shrunk.variance * own**2 for keys, own, shrunk in classes]
        scaled = [np.sqrt((1 - shrunk.share) / rows) * keys for keys, _, shrunk in classes]
        return np.concatenate(scaled), np.maximum(np.sum(diagonal, axis=0), _LEAST)


@dataclass(frozen=True, eq=False)
class Pair:
    """The keys of both classes, read some dimensions at a time."""

    skill: Floats | Floats32
    retained: Floats | Floats32
    dtype: DTypeLike

    @property
    def rows(self) -> int:
        """Of both classes."""
        return len(self.skill) + len(self.retained)

    @property
    def dimensions(self) -> int:
        """Of a key."""
        return int(self.skill.shape[1])

    def parts(self) -> Iterator[Part]:
        """All dimensions, at once where they are no more than the keys."""
        width = self.dimensions if self.dimensions <= self.rows else _BLOCK
        for start in range(0, self.dimensions, width):
            columns = slice(start, start + width)
            classes = [keys[:, columns].astype(self.dtype) for keys in (self.skill, self.retained)]
            deviation = self._deviation(np.concatenate(classes))
            means = [keys.mean(axis=0, dtype=np.float64).astype(self.dtype) for keys in classes]
            centred = [(keys - mean) / deviation for keys, mean in zip(classes, means, strict=True)]
            yield Part(
                columns,
                means[1],
                deviation,
                (means[0] - means[1]) / deviation,
                centred,
                [self._deviation(keys) for keys in centred],
            )

    def _deviation(self, keys: Floats) -> Floats:
        # In float32 the mean of equal numbers may be another number, and a constant dimension would seem to vary.
        deviation: Floats = keys.std(axis=0, dtype=np.float64).astype(self.dtype)
        return np.where(deviation > 0, deviation, np.ones_like(deviation))


def _spread(distance: float) -> float:
    """The standard deviation of margins within a class, from the ``distance`` of the classes' means along the weight.

    Raises ``BakeoutError`` where there is none.
    """
    if distance <= 0:
        raise BakeoutError(
            "Key Space Detection: the skill's keys and the retained ones have the same mean.",
            "Name other retain data, or choose another region.",
        )
    return float(np.sqrt(distance))


def shrinkages_of(pair: Pair) -> list[Shrinkage]:
    """Of each class's covariance, in units of its own deviations."""
    products = [np.zeros((len(keys), len(keys)), dtype=pair.dtype) for keys in (pair.skill, pair.retained)]
    for part in pair.parts():
        for product, keys, own in zip(products, part.centred, part.own, strict=True):
            standardised = keys / own
            product += standardised @ standardised.T
    return [ledoit_wolf(product, pair.dimensions) for product in products]


def _primal(pair: Pair, shrinkages: Sequence[Shrinkage]) -> Floats:
    """S^-1 ``difference``, of no more dimensions than rows."""
    (part,) = pair.parts()
    rows, diagonal = part.within(shrinkages)
    return np.asarray(np.linalg.solve(np.diag(diagonal) + rows.T @ rows, part.difference))


def _dual(pair: Pair, shrinkages: Sequence[Shrinkage]) -> Floats:
    """The same of more dimensions than rows, by Woodbury's identity: no D x D matrix is formed."""

    def scaled() -> Iterator[tuple[Floats, Floats, Floats]]:
        for part in pair.parts():
            rows, diagonal = part.within(shrinkages)
            root = np.sqrt(diagonal)
            yield rows / root, part.difference / root, root

    inner, values = np.eye(pair.rows, dtype=pair.dtype), np.zeros(pair.rows, dtype=pair.dtype)
    for rows, difference, _ in scaled():
        # Of a product with itself half is computed.
        inner += rows @ rows.T
        values += rows @ difference
    solution = np.linalg.solve(inner, values)
    return np.concatenate([(difference - rows.T @ solution) / root for rows, difference, root in scaled()])
