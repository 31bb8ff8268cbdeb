"""Fitting rotated cubes: cubes across the leading directions of a skill's spread (our reading)."""

from __future__ import annotations

from bakeout.models.methods.key_space_detection.regions.fitter import Fitter, Probed
from bakeout.models.methods.key_space_detection.regions.low_rank import COUNTS, arrays_and_rest
from bakeout.models.plan.kinds.regions.rotated_cube import RotatedCubes


def _fit(probed: Probed, _floor: float) -> RotatedCubes:
    arrays, _ = arrays_and_rest(probed)
    return RotatedCubes(**arrays)


ROTATED_CUBE = Fitter("rotated_cube", _fit, counts=COUNTS)
