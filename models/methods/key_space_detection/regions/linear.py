"""Fitting half-spaces: a linear discriminant against retained keys (our reading)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.regions.discriminant import discriminant
from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.methods.key_space_detection.regions.refits import HalfSpaceRefits
from bakeout.models.plan import Floats
from bakeout.models.plan.kinds.regions.linear import HalfSpaces

# Keys whose margins are computed at a time.
_ROWS = 256


def _fit(probed: Probed, _floor: float) -> HalfSpaces:
    if probed.retained is None or not len(probed.retained):
        raise BakeoutError(
            "Key Space Detection: a linear region is fitted against retained queries, and there are none.",
            "Name retain data with a probe file, or choose another region.",
        )
    parts = probed.clusters.parts(probed.keys)
    fitted = [discriminant(keys, probed.retained, probed.dtype) for keys in parts]
    return HalfSpaces(np.stack([weight for weight, _ in fitted]), np.array([bias for _, bias in fitted]))


def _nearest(keys: NDArray[Any], regions: HalfSpaces) -> Floats:
    """In float64 some keys at a time."""
    parts = np.array_split(keys, -(-len(keys) // _ROWS) or 1)
    return np.concatenate([regions.margins(part).min(axis=1) for part in parts])


# One direction in all depths is found, where the sides of a cube in all of them only add up.
LINEAR = Fitter("linear", _fit, _nearest, needs_retained=True, refits=HalfSpaceRefits, everywhere=True)
