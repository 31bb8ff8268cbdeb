"""Fitting half-spaces: a linear discriminant against retained keys (our reading)."""

from __future__ import annotations

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.regions.discriminant import discriminant
from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.methods.key_space_detection.regions.left_out import LeftOut
from bakeout.models.plan.kinds.regions.linear import HalfSpaces


def _fit(probed: Probed, _floor: float) -> HalfSpaces:
    if probed.retained is None or not len(probed.retained):
        raise BakeoutError(
            "Key Space Detection: a linear region is fitted against retained queries, and there are none.",
            "Name retain data with a probe file, or choose another region.",
        )
    fitted = [discriminant(probed.keys[rows], probed.retained, probed.dtype) for rows in probed.clusters.members]
    return HalfSpaces(np.stack([weight for weight, _ in fitted]), np.array([bias for _, bias in fitted]))


# Jointly all depths that a choice examines: one direction in all of them is found, where a cube's sides only add up.
LINEAR = Fitter("linear", _fit, needs_retained=True, left_out=LeftOut, layers=12)
