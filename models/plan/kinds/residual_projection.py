"""Directions projected out of the residual stream: what ablating a refusal or concept direction is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.intervention import Take
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.residual_edit import LayerDirection, ResidualEdit

# How far from 1 the norm of a float32 unit vector can be.
_UNIT = 1e-5


@dataclass(frozen=True, eq=False)
class ResidualProjection(ResidualEdit):
    """Directional ablation (arXiv 2406.11717): behind block l, the residual stream h becomes h - (h v_l) v_l.

    The directions v_l are unit vectors.
    """

    kind = "residual_projection"
    title = "Residual projection"
    explanation = (
        "A direction is projected out of the residual stream behind each of these blocks, at every token: what the "
        "model writes along it up to there, later blocks do not read."
    )
    report_type = RetainReport
    layers: tuple[LayerDirection, ...]
    report: RetainReport = field(default_factory=RetainReport)

    def __post_init__(self) -> None:
        self.require_layers()
        for placed in self.layers:
            norm = float(np.linalg.norm(placed.direction.astype(np.float64)))
            if abs(norm - 1) > _UNIT:
                raise PlanError(f"{self.title}, layer {placed.layer}: the direction's norm is {norm:.6g}, not 1.")

    def figures(self) -> dict[str, Any]:
        """None."""
        return {}

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From layers and directions."""
        return cls(cls.directions_from(settings, take), report)

    @property
    def summary(self) -> str:
        """Where a direction is projected out."""
        return f"a direction projected out {self._in_layers()}"
