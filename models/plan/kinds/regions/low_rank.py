"""What shapes share that look at keys along a few directions: the axes of a skill's own spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, PlanError, require_finite
from bakeout.models.plan.kinds.regions.regions import WHERE, Regions, Take, require_regions

_ORTHONORMAL = 1e-6


@dataclass(frozen=True, eq=False)
class LowRank(Regions):
    """Regions along ``directions`` U of standardised keys z = (key - ``centre``) / ``deviation``.

    ``centre`` and ``deviation``: float64 [regions, D], ``directions``: [regions, D, r], a region's are orthonormal (or
    0, if it has fewer than others), ``scale``: [regions, r], the spread of z along each. Raises ``PlanError`` for
    arrays that are not that, or not finite, and for spreads that are not positive.
    """

    centre: Floats
    deviation: Floats
    directions: Floats
    scale: Floats

    def __post_init__(self) -> None:
        require_regions(self.centre, "centre")
        require_regions(self.deviation, "deviation")
        require_regions(self.scale, "scale")
        count, rank = self.scale.shape
        if self.deviation.shape != self.centre.shape or self.directions.shape != (*self.centre.shape, rank):
            raise PlanError(f"{WHERE}: centre, deviation, directions and scale are of different shapes.")
        if count != len(self.centre):
            raise PlanError(f"{WHERE}: centre and scale are of different numbers of regions.")
        require_finite(self.directions, f"{WHERE}: directions")
        if bool(np.any(self.deviation <= 0)) or bool(np.any(self.scale <= 0)):
            raise PlanError(f"{WHERE}: a deviation or a scale is not positive.")
        for directions in self.directions:
            products = directions.T @ directions
            if not np.allclose(products, np.diag(np.round(np.diag(products).clip(0, 1))), atol=_ORTHONORMAL):
                raise PlanError(f"{WHERE}: directions are not orthonormal.")

    def arrays(self) -> dict[str, Array]:
        """All of them."""
        return {name: getattr(self, name) for name in ("centre", "deviation", "directions", "scale")}

    @classmethod
    def from_file(cls, take: Take) -> Self:
        """From the arrays."""
        return cls(*(take(name, np.float64) for name in ("centre", "deviation", "directions", "scale")))

    @property
    def shape(self) -> tuple[int, int]:
        """Regions and dimensions."""
        regions, dimensions = self.centre.shape
        return regions, dimensions

    def joined(self, others: Sequence[Self]) -> Self:
        """These regions, and then all ``others``; those of fewer directions get some that are 0."""
        parts = (self, *others)
        most = max(part.scale.shape[1] for part in parts)
        padded = [part.arrays() for part in parts]
        for part in padded:
            missing = most - part["scale"].shape[1]
            part["directions"] = np.pad(part["directions"], ((0, 0), (0, 0), (0, missing)))
            part["scale"] = np.pad(part["scale"], ((0, 0), (0, missing)), constant_values=1.0)
        return type(self)(**{name: np.concatenate([part[name] for part in padded]) for name in padded[0]})

    def standardised(self, keys: Floats, region: int) -> tuple[Floats, Floats]:
        """Z [n, D] of keys [n, D] in a region, and U^T z / scale [n, r]."""
        z: Floats = (np.asarray(keys, dtype=np.float64) - self.centre[region]) / self.deviation[region]
        return z, z @ self.directions[region] / self.scale[region]

    def facts(self, region: int) -> dict[str, int | float]:
        """Dimensions and directions."""
        rank = int((self.directions[region] ** 2).sum(axis=0).round().sum())
        return {"dimensions": self.shape[1], "directions": rank}

    def told(self, region: int) -> str:
        """The same in words."""
        facts = self.facts(region)
        return f"{facts['dimensions']} dimensions, {facts['directions']} directions"
