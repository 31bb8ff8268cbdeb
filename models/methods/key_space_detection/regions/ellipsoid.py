"""Fitting ellipsoids: a skill's shrunk covariance (our reading)."""

from __future__ import annotations

import numpy as np

from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.methods.key_space_detection.regions.low_rank import COUNTS, arrays_and_rest
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids


def _fit(probed: Probed, _floor: float) -> Ellipsoids:
    arrays, rest = arrays_and_rest(probed)
    return Ellipsoids(**arrays, rest=np.full(len(arrays["centre"]), rest))


ELLIPSOID = Fitter("ellipsoid", _fit, counts=COUNTS)
