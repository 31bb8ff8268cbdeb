"""Fitting half-spaces: linear discriminant analysis with shrunk covariances, against retained keys (our reading)."""

from __future__ import annotations

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.methods.key_space_detection.regions.shrinkage import ledoit_wolf
from bakeout.models.plan import Floats, Floats32
from bakeout.models.plan.kinds.regions.linear import HalfSpaces


def discriminant(skill: Floats | Floats32, retained: Floats | Floats32) -> tuple[Floats, float]:
    """Weight [D] and bias of the margin -(weight . key + bias), from keys of ``skill`` [n, D] and ``retained`` [m, D].

    Linear discriminant analysis on standardised keys: weight = S^-1 (skill's mean - retained mean), S the classes'
    covariances, each shrunk by Ledoit and Wolf's share in units of its own deviations, averaged by their numbers of
    rows. That is scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")``. The margin is scaled
    to the standard deviation within a class, and 0 at the skill's mean: alpha takes the intercept's place. Computed in
    the keys' type; the weight is float64.

    Raises ``BakeoutError`` where both have the same mean.
    """
    rows = len(skill) + len(retained)
    every = np.concatenate([skill, retained])
    deviation = _or_one(every.std(axis=0))
    centred: list[Floats] = []
    diagonal = np.zeros_like(skill[0])
    for keys in (skill, retained):
        from_mean = (keys - keys.mean(axis=0)) / deviation
        own = _or_one(from_mean.std(axis=0))
        shrinkage = ledoit_wolf(from_mean / own)
        diagonal += len(keys) / rows * shrinkage.share * shrinkage.variance * own**2
        centred.append(np.sqrt((1 - shrinkage.share) / rows) * from_mean)
    difference = (skill.mean(axis=0) - retained.mean(axis=0)) / deviation
    weight = _solved(np.concatenate(centred), diagonal, difference)
    distance = float(weight @ difference)
    if distance <= 0:
        raise BakeoutError(
            "Key Space Detection: the skill's keys and the retained ones have the same mean.",
            "Name other retain data, or choose another region.",
        )
    scaled = np.asarray(weight / (np.sqrt(distance) * deviation), dtype=np.float64)
    return scaled, -float(scaled @ skill.mean(axis=0))


def _solved(rows: Floats, diagonal: Floats, values: Floats) -> Floats:
    """(diag(``diagonal``) + R^T R)^-1 ``values`` of ``rows`` R [n, D], by the smaller of two systems."""
    count, dimensions = rows.shape
    if count >= dimensions:
        return np.asarray(np.linalg.solve(np.diag(diagonal) + rows.T @ rows, values))
    # Woodbury's identity, with one matrix on both sides: of a product with itself half is computed.
    root = np.sqrt(diagonal)
    scaled = rows / root
    inner = np.linalg.solve(np.eye(count, dtype=rows.dtype) + scaled @ scaled.T, scaled @ (values / root))
    woodbury: Floats = (values / root - scaled.T @ inner) / root
    return woodbury


def _or_one(deviation: Floats) -> Floats:
    positive: Floats = np.where(deviation > 0, deviation, 1.0)
    return positive


def _fit(probed: Probed, _floor: float) -> HalfSpaces:
    if probed.retained is None or not len(probed.retained):
        raise BakeoutError(
            "Key Space Detection: a linear region is fitted against retained queries, and there are none.",
            "Name retain data with a probe file, or choose another region.",
        )
    fitted = [discriminant(probed.keys[rows], probed.retained) for rows in probed.clusters.members]
    return HalfSpaces(np.stack([weight for weight, _ in fitted]), np.array([bias for _, bias in fitted]))


LINEAR = Fitter("linear", _fit, needs_retained=True)
