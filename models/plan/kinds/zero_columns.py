"""Columns of ``down`` that become 0: the kind in which Selective Pruning ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, Integers, PlanError, require_ascending, require_layer
from bakeout.models.plan.feed_forward_modules import Role
from bakeout.models.plan.kinds.description import counted
from bakeout.models.plan.kinds.intervention import Take
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.weight_change import WeightChange
from bakeout.models.plan.kinds.weight_edit import WeightEdit


@dataclass(frozen=True, kw_only=True)
class ZeroColumnsReport(RetainReport):
    """``ratio`` of all neurons are selected by their scores; ``silent_neurons`` do nothing on the forget set."""

    ratio: float | None = None
    neurons: int | None = None
    neurons_per_layer: Mapping[str, int] | None = None
    silent_neurons: int | None = None
    highest_score: float | None = None
    lowest_selected_score: float | None = None
    forget_tokens: int | None = None
    retain_tokens: int | None = None

    def facts(self) -> list[tuple[str, str]]:
        """How the neurons were selected."""
        facts = super().facts()
        if self.ratio is not None:
            facts.append(("ratio", f"{100 * self.ratio:.3g} % of all neurons"))
        if self.silent_neurons is not None:
            facts.append(("silent", f"{counted(self.silent_neurons, 'neuron')} on the forget set"))
        if self.highest_score is not None and self.lowest_selected_score is not None:
            facts.append(("scores", f"{self.lowest_selected_score:.4g} to {self.highest_score:.4g}"))
        if self.forget_tokens is not None and self.retain_tokens is not None:
            facts.append(("probed", f"{self.forget_tokens} tokens to forget, {self.retain_tokens} to retain"))
        return facts


@dataclass(frozen=True, eq=False)
class ZeroedColumns(WeightChange):
    """The columns of one layer's ``down`` that become 0: int64 [n], ascending neuron indices."""

    exact = True
    layer: int
    columns: Integers
    role: Role = field(default="down", init=False)

    def __post_init__(self) -> None:
        where = f"Zeroed columns, layer {self.layer}"
        require_layer(self.layer, where)
        require_ascending(self.columns, "columns", where)

    @property
    def count(self) -> int:
        """How many columns."""
        return len(self.columns)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the weight has all these columns."""
        return len(shape) == 2 and bool(self.columns[-1] < shape[1])

    def touched(self) -> Integers:
        """The columns."""
        return self.columns

    def asked(self, before: Floats, rows: slice, columns: slice | Integers) -> Floats:
        """Minus what is there."""
        return -before

    def formula(self, weight: Any, array: Callable[[Array], Any]) -> Any:
        """The columns set to 0."""
        weight[:, array(self.columns)] = 0
        return weight


@dataclass(frozen=True, eq=False)
class ZeroColumns(WeightEdit):
    """Selective Pruning (the baseline of arXiv 2503.21730): neurons removed by zeroing their columns of ``down``.

    Shapes stay, so that every loader takes the result.
    """

    kind = "zero_columns"
    title = "Zeroed columns"
    unit = "column"
    count_key = "columns"
    explanation = (
        "Neurons are removed (Selective Pruning): their columns of the down projections are exactly zero. Shapes are "
        "the base model's."
    )
    report_type = ZeroColumnsReport
    layers: tuple[ZeroedColumns, ...]
    report: ZeroColumnsReport = field(default_factory=ZeroColumnsReport)

    def __post_init__(self) -> None:
        numbers = [layer.layer for layer in self.layers]
        if not numbers or numbers != sorted(set(numbers)):
            raise PlanError("Zeroed columns: the layers are not ascending, or there is none.")

    @property
    def summary(self) -> str:
        """How many neurons are gone."""
        neurons = sum(zeroed.count for zeroed in self.layers)
        return f"{counted(neurons, 'neuron')} in {counted(len(self.layers), 'layer')}"

    def settings(self) -> dict[str, Any]:
        """The layers."""
        return {"layers": [zeroed.layer for zeroed in self.layers]}

    def arrays(self) -> dict[str, Array]:
        """The columns of every layer."""
        return {f"layers.{zeroed.layer}.columns": zeroed.columns for zeroed in self.layers}

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From layers and columns."""
        layers = (ZeroedColumns(layer, take(f"layers.{layer}.columns", np.int64)) for layer in settings["layers"])
        return cls(tuple(layers), report)

    def weight_changes(self) -> tuple[WeightChange, ...]:
        """Layer by layer."""
        return self.layers
