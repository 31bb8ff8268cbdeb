"""Fitting cubes (arXiv 2503.21730, section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.plan import Cubes, Floats

# Margins are computed for this many queries at a time: they stay in the processor's cache.
_ROWS = 64


def nearest_margins(keys: NDArray[np.float32], cubes: Cubes) -> Floats:
    """The margin of each key [n, D] to the nearest cube, computed in float32, the keys' dtype: float64 [n]."""
    nearest = np.full(len(keys), np.inf)
    centres, inverses = cubes.centre.astype(np.float32), (1 / cubes.deviation).astype(np.float32)
    for start in range(0, len(keys), _ROWS):
        rows = keys[start : start + _ROWS]
        for centre, inverse in zip(centres, inverses, strict=True):
            away = rows - centre
            np.abs(away, out=away)
            away *= inverse
            np.minimum(nearest[start : start + _ROWS], away.max(axis=1), out=nearest[start : start + _ROWS])
    return nearest


def _fit(probed: Probed, floor: float) -> Cubes:
    return probed.clusters.cubes(floor)


CUBE = Fitter("cube", _fit, nearest_margins, uses_floor=True, counts=32)
