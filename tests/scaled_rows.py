"""A kind of weight edit that Bakeout does not have, in one file, as another package would bring it: scaled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bakeout.models.plan import Floats, Floats32, Integers, Role, WeightChange, WeightEdit, register_kind
from bakeout.models.plan.kinds.report import FitReport


@dataclass(frozen=True, eq=False)
class ScaledRows(WeightChange):
    """The rows of one weight W [out, in], each times its factor: float32 [out]."""

    layer: int
    role: Role
    factors: Floats32

    @property
    def count(self) -> int:
        """How many rows change."""
        return int((self.factors != 1).sum())

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is a factor for each row."""
        return len(shape) == 2 and shape[0] == len(self.factors)

    def asked(self, before: Floats, rows: slice, columns: slice | Integers) -> Floats:
        """(factor - 1) W."""
        return before * (self.factors[rows, None].astype(np.float64) - 1)

    def formula(self, weight: Any, array: Callable[[NDArray[Any]], Any]) -> Any:
        """Factor times W."""
        return weight * array(self.factors.astype(np.float64)[:, None])


@register_kind
@dataclass(frozen=True, eq=False)
class ScaleRows(WeightEdit):
    """Rows of weights, scaled."""

    kind = "scale_rows"
    title = "Scaled rows"
    unit = "row"
    count_key = "rows"
    explanation = "Rows of weights are multiplied by factors."
    changes: tuple[ScaledRows, ...]
    report: FitReport = field(default_factory=FitReport)

    def settings(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": [[change.layer, change.role] for change in self.changes]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Their factors."""
        return {f"{change.layer}.{change.role}": change.factors for change in self.changes}

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Callable[[str, type], Any], report: Any) -> Self:
        """From weights and factors."""
        weights = settings["weights"]
        return cls(
            tuple(ScaledRows(layer, role, take(f"{layer}.{role}", np.float32)) for layer, role in weights), report
        )

    def weight_changes(self) -> tuple[WeightChange, ...]:
        """Weight by weight."""
        return self.changes
