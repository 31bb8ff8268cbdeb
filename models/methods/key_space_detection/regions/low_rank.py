"""Fitting the shapes that look at keys along the leading directions of a skill's spread (our reading)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.regions.fitter import Probed
from bakeout.models.methods.key_space_detection.regions.shrinkage import ledoit_wolf
from bakeout.models.plan import Floats

# As many leading directions are looked at as hold this share of the variance, and no more than that many.
HELD = 0.9
MOST = 64
# Variances below this share of the largest are rounding.
_LEAST = 1e-9
# Each region has a D x r matrix: a choice tries few of them.
COUNTS = 4


@dataclass(frozen=True, eq=False)
class Axes:
    """Leading ``directions`` [D, r], the spread along each (``scale`` [r]), and in all others (``rest``)."""

    directions: Floats
    scale: Floats
    rest: float


def axes(deviations: Floats) -> Axes:
    """The axes of standardised keys [n, D] about their clusters' means.

    The covariance is shrunk as Ledoit and Wolf do, towards a multiple of the identity: that leaves its directions, and
    moves the spreads along them towards each other. ``rest`` is the root of the mean variance in all others. Raises
    ``BakeoutError`` for keys that do not vary.
    """
    count, dimensions = deviations.shape
    products = deviations @ deviations.T
    shrinkage = ledoit_wolf(products, dimensions)
    if not shrinkage.variance > 0:
        raise BakeoutError("Key Space Detection: no cluster's key vectors vary.", "Use fewer regions, or a cube.")
    variances, vectors = np.linalg.eigh(products / count)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    held = np.cumsum(variances) / variances.sum()
    # At least one direction is left to ``rest``, and none without variance is taken.
    most = min(MOST, max(1, dimensions - 1), int((variances > _LEAST * variances[0]).sum()))
    rank = min(int(np.searchsorted(held, HELD)) + 1, most)
    directions, _ = np.linalg.qr(deviations.T @ vectors[:, :rank])
    shrunk = (1 - shrinkage.share) * variances[:rank] + shrinkage.share * shrinkage.variance
    left = (dimensions * shrinkage.variance - float(shrunk.sum())) / max(1, dimensions - rank)
    return Axes(directions, np.sqrt(shrunk), float(np.sqrt(max(left, _LEAST * variances[0]))))


def arrays_and_rest(probed: Probed) -> tuple[dict[str, Floats], float]:
    """The arrays that both shapes have, of a region for each cluster, and ``rest``.

    The clusters share their directions and spreads, as the classes of a linear discriminant do: few queries have none
    of their own.
    """
    clusters = probed.clusters
    deviation = np.maximum(clusters.overall, clusters.dead)
    members = zip(clusters.members, clusters.centre, strict=True)
    own = axes(np.concatenate([(probed.keys[rows] - centre) / deviation for rows, centre in members]))
    count = len(clusters.members)
    arrays = {
        "centre": clusters.centre,
        "deviation": np.tile(deviation, (count, 1)),
        "directions": np.tile(own.directions, (count, 1, 1)),
        "scale": np.tile(own.scale, (count, 1)),
    }
    return arrays, own.rest
