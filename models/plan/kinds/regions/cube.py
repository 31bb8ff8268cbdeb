"""Cubes (arXiv 2503.21730, section 3.2): every dimension of a key is within alpha deviations of the centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, PlanError
from bakeout.models.plan.kinds.regions.regions import WHERE, Regions, Take, require_regions

# By how much a term of a margin that is larger by alpha outweighs another in the slope: e to this power.
SHARPNESS = 20.0


@dataclass(frozen=True, eq=False)
class Cubes(Regions):
    """Cubes with the margin max_j |key_j - centre_cj| / deviation_cj.

    ``centre`` and ``deviation``: float64 [cubes, D]. Raises ``PlanError`` for arrays that are not that, or not finite,
    and for a deviation that is not positive.
    """

    name = "cube"
    noun = "cube"
    schema = 1
    centre: Floats
    deviation: Floats

    def __post_init__(self) -> None:
        require_regions(self.centre, "centre")
        if self.deviation.shape != self.centre.shape:
            raise PlanError(f"{WHERE}: centre and deviation have different shapes.")
        require_regions(self.deviation, "deviation")
        if bool(np.any(self.deviation <= 0)):
            raise PlanError(f"{WHERE}: a deviation is not positive.")

    def arrays(self) -> dict[str, Array]:
        """Centre and deviation."""
        return {"centre": self.centre, "deviation": self.deviation}

    @classmethod
    def from_file(cls, take: Take) -> Self:
        """From centre and deviation."""
        return cls(take("centre", np.float64), take("deviation", np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """Cubes and dimensions."""
        cubes, dimensions = self.centre.shape
        return cubes, dimensions

    def margins(self, keys: Floats) -> Floats:
        """The margin to every cube: keys float [n, D] to float64 [n, cubes]."""
        keys = np.asarray(keys, dtype=np.float64)
        return np.stack(
            [np.abs((keys - c) / d).max(axis=1) for c, d in zip(self.centre, self.deviation, strict=True)], axis=1
        )

    def slope(self, keys: Floats, region: int, alpha: float) -> Floats:
        """The gradient of the margin with its largest term softened, so that all that are about as large count."""
        from_centre = (np.asarray(keys, dtype=np.float64) - self.centre[region]) / self.deviation[region]
        terms = SHARPNESS * np.abs(from_centre) / alpha
        weights = np.exp(terms - terms.max(axis=1, keepdims=True))
        slope: Floats = weights / weights.sum(axis=1, keepdims=True) * np.sign(from_centre) / self.deviation[region]
        return slope

    def facts(self, region: int) -> dict[str, int | float]:
        """Dimensions and median deviation."""
        deviation = self.deviation[region]
        return {"dimensions": len(deviation), "median_deviation": float(np.median(deviation))}

    def told(self, region: int) -> str:
        """The same in words."""
        facts = self.facts(region)
        return f"{facts['dimensions']} dimensions, median deviation {facts['median_deviation']:.3g}"
