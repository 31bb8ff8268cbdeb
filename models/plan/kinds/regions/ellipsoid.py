"""Ellipsoids: a skill's spread along its leading directions, and one spread for all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, PlanError, require_finite
from bakeout.models.plan.kinds.regions.low_rank import LowRank
from bakeout.models.plan.kinds.regions.regions import WHERE, Take


@dataclass(frozen=True, eq=False)
class Ellipsoids(LowRank):
    """Ellipsoids with the margin sqrt(|U^T z / scale|^2 + |z - U U^T z|^2 / rest^2), z the standardised key.

    ``rest``: float64 [ellipsoids], the spread of z in every other direction.
    """

    name = "ellipsoid"
    noun = "ellipsoid"
    rest: Floats

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rest.shape != (len(self.centre),):
            raise PlanError(f"{WHERE}: centre and rest are of different numbers of ellipsoids.")
        require_finite(self.rest, f"{WHERE}: rest")
        if bool(np.any(self.rest <= 0)):
            raise PlanError(f"{WHERE}: a rest is not positive.")

    def arrays(self) -> dict[str, Array]:
        """All of them."""
        return super().arrays() | {"rest": self.rest}

    @classmethod
    def from_file(cls, take: Take) -> Self:
        """From the arrays."""
        return cls(*(take(name, np.float64) for name in ("centre", "deviation", "directions", "scale", "rest")))

    def margins(self, keys: Floats) -> Floats:
        """The margin to every ellipsoid: keys float [n, D] to float64 [n, ellipsoids]."""
        margins = []
        for region in range(self.shape[0]):
            along, beside = self._parts(keys, region)
            margins.append(np.sqrt((along**2).sum(axis=1) + (beside**2).sum(axis=1)))
        return np.stack(margins, axis=1)

    def slope(self, keys: Floats, region: int, alpha: float) -> Floats:
        """The gradient of the margin; 0 at the centre."""
        along, beside = self._parts(keys, region)
        margin = np.sqrt((along**2).sum(axis=1) + (beside**2).sum(axis=1))[:, None]
        rates = along / self.scale[region] @ self.directions[region].T + beside / self.rest[region]
        slope: Floats = rates / np.where(margin > 0, margin, 1) / self.deviation[region]
        return slope

    def _parts(self, keys: Floats, region: int) -> tuple[Floats, Floats]:
        """U^T z / scale [n, r], and (z - U U^T z) / rest [n, D]."""
        z, along = self.standardised(keys, region)
        beside: Floats = (z - along * self.scale[region] @ self.directions[region].T) / self.rest[region]
        return along, beside
