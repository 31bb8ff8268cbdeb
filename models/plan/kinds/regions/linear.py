"""Half-spaces behind a linear discriminant: the keys that look more like the skill's than like retained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, PlanError, require_finite
from bakeout.models.plan.kinds.regions.regions import WHERE, Regions, Take, require_regions


@dataclass(frozen=True, eq=False)
class HalfSpaces(Regions):
    """Half-spaces with the margin -(weight_c . key + bias_c), which can be negative, as can alpha.

    ``weight``: float64 [half-spaces, D], ``bias``: [half-spaces]. A fit scales them to the spread of keys within a
    class: 1 is a standard deviation, and 0 the mean of the skill's probe keys. Raises ``PlanError`` for arrays that are
    not that, or not finite.
    """

    name = "linear"
    noun = "half-space"
    bounded = False
    weight: Floats
    bias: Floats

    def __post_init__(self) -> None:
        require_regions(self.weight, "weight")
        if self.bias.shape != self.weight.shape[:1]:
            raise PlanError(f"{WHERE}: weight and bias are of different numbers of half-spaces.")
        require_finite(self.bias, f"{WHERE}: bias")

    def arrays(self) -> dict[str, Array]:
        """Weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def from_file(cls, take: Take) -> Self:
        """From weight and bias."""
        return cls(take("weight", np.float64), take("bias", np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """Half-spaces and dimensions."""
        half_spaces, dimensions = self.weight.shape
        return half_spaces, dimensions

    def margins(self, keys: Floats) -> Floats:
        """The margin to every half-space: keys float [n, D] to float64 [n, half-spaces]."""
        margins: Floats = -(np.asarray(keys, dtype=np.float64) @ self.weight.T + self.bias)
        return margins

    def slope(self, keys: Floats, region: int, alpha: float) -> Floats:
        """The gradient of the margin, which is the same everywhere."""
        return np.tile(-self.weight[region], (len(keys), 1))

    def require_alpha(self, alpha: Floats) -> None:
        """Any alpha is the size of a half-space."""

    def nearness(self, margins: Floats, alpha: Floats) -> Floats:
        """1 and the distance from the boundary in alphas, or in standard deviations where alpha is less than one."""
        near: Floats = 1 + (margins - alpha) / np.maximum(np.abs(alpha), 1)
        return near

    def canary_unit(self, expected: Floats) -> Floats:
        """The expected margins, or a standard deviation where that is more: margins can be 0."""
        return np.maximum(np.abs(expected), 1)

    def facts(self, region: int) -> dict[str, int | float]:
        """Dimensions and the length of the weight."""
        weight = self.weight[region]
        return {"dimensions": len(weight), "weight_norm": float(np.linalg.norm(weight))}

    def told(self, region: int) -> str:
        """The same in words."""
        facts = self.facts(region)
        return f"{facts['dimensions']} dimensions, weight of length {facts['weight_norm']:.3g}"
