"""Rotated cubes: cubes whose faces lie across the leading directions of the skill's own spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bakeout.models.plan.arrays import Floats
from bakeout.models.plan.kinds.regions.cube import SHARPNESS
from bakeout.models.plan.kinds.regions.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class RotatedCubes(LowRank):
    """Rotated cubes with the margin max_j |u_j . z| / scale_j, z the standardised key; other directions are free."""

    name = "rotated_cube"
    noun = "rotated cube"
    bounded = False

    def margins(self, keys: Floats) -> Floats:
        """The margin to every rotated cube: keys float [n, D] to float64 [n, rotated cubes]."""
        regions = range(self.shape[0])
        return np.stack([np.abs(self.standardised(keys, region)[1]).max(axis=1) for region in regions], axis=1)

    def slope(self, keys: Floats, region: int, alpha: float) -> Floats:
        """The gradient of the margin with its largest term softened."""
        _, along = self.standardised(keys, region)
        terms = SHARPNESS * np.abs(along) / alpha
        weights = np.exp(terms - terms.max(axis=1, keepdims=True))
        rates = weights / weights.sum(axis=1, keepdims=True) * np.sign(along) / self.scale[region]
        slope: Floats = rates @ self.directions[region].T / self.deviation[region]
        return slope
