"""Directions added to the residual stream: what control vectors are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.intervention import Take
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.residual_edit import LayerDirection, ResidualEdit


@dataclass(frozen=True, eq=False)
class ResidualAddition(ResidualEdit):
    """A control vector: behind block l, at every token, the residual stream h becomes h + c v_l.

    With ``keep_norm``, (h + c v_l) ‖h‖ / ‖h + c v_l‖. ``coefficient`` is c. (Representation engineering, arXiv
    2310.01405, as repeng and llama.cpp apply it.)
    """

    kind = "residual_addition"
    title = "Residual addition"
    explanation = (
        "A direction (a control vector) is added to the residual stream behind each of these blocks, at every token."
    )
    report_type = RetainReport
    layers: tuple[LayerDirection, ...]
    coefficient: float = 1.0
    keep_norm: bool = False
    report: RetainReport = field(default_factory=RetainReport)

    def __post_init__(self) -> None:
        self.require_layers()
        if not isinstance(self.coefficient, float) or not math.isfinite(self.coefficient) or self.coefficient == 0:
            raise PlanError(f"{self.title}: the coefficient {self.coefficient!r} is not a finite number other than 0.")
        if not isinstance(self.keep_norm, bool):
            raise PlanError(f"{self.title}: whether norms are kept is {self.keep_norm!r}.")

    def figures(self) -> dict[str, Any]:
        """The coefficient, and whether norms are kept."""
        return {"coefficient": self.coefficient, "keep_norm": self.keep_norm}

    def structure(self) -> dict[str, Any]:
        """Without the coefficient, which is in the constants."""
        return {name: value for name, value in super().structure().items() if name != "coefficient"}

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From layers, directions and figures."""
        return cls(cls.directions_from(settings, take), settings["coefficient"], settings["keep_norm"], report)

    @property
    def summary(self) -> str:
        """How much is added where."""
        kept = ", norms kept" if self.keep_norm else ""
        return f"{self.coefficient:g} times a direction added {self._in_layers()}{kept}"
