"""Low-rank matrices added to weights: the kind in which LUNAR, UNLEARN, LEARN, Reveal-and-Release and imports end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, Floats32, Integers, PlanError, require_finite, require_layer
from bakeout.models.plan.attention_modules import WeightRole, attention_weight, is_of_an_end
from bakeout.models.plan.feed_forward_modules import Role
from bakeout.models.plan.kinds.intervention import Take
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.weight_change import WeightChange
from bakeout.models.plan.kinds.weight_edit import WeightEdit


@dataclass(frozen=True, eq=False)
class WeightUpdate(WeightChange):
    """What is added to one weight W [out, in] (``y = W x``): ``left`` [out, rank] @ ``right`` [rank, in], float32.

    Of an embedding W is [vocabulary, hidden], and ``layer`` 0; of a head the last.
    """

    layer: int
    role: WeightRole
    left: Floats32
    right: Floats32
    module: str | None = None

    def __post_init__(self) -> None:
        where = f"Low-rank update, layer {self.layer}, {self.role}"
        require_layer(self.layer, where)
        if self.module is None and self.role not in get_args(Role):
            raise PlanError(f"{where}: no weight of an FFL is called so.")
        if is_of_an_end(self.role):
            if self.module is None:
                raise PlanError(f"{where}: the module has no name.")
        elif self.module is not None and attention_weight(self.module) != (self.layer, self.role):
            raise PlanError(f"{where}: {self.module} is no such linear layer of attention.")
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise PlanError(f"{where}: factors of shapes {self.left.shape} and {self.right.shape} have no product.")
        if 0 in self.left.shape or 0 in self.right.shape:
            raise PlanError(f"{where}: the factors are empty.")
        require_finite(self.left, f"{where}: left")
        require_finite(self.right, f"{where}: right")

    @property
    def count(self) -> int:
        """The rank."""
        return len(self.right)

    @property
    def low_rank_factors(self) -> tuple[Floats32, Floats32]:
        """Left and right."""
        return self.left, self.right

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the product has this shape."""
        return shape == (len(self.left), self.right.shape[1])

    def asked(self, before: Floats, rows: slice, columns: slice | Integers) -> Floats:
        """The product's block, computed in the order in which the weight's block lies in memory."""
        left, right = self.left[rows].astype(np.float64), self.right[:, columns].astype(np.float64)
        product: Floats = (right.T @ left.T).T if before.strides[0] < before.strides[1] else left @ right
        return product

    def formula(self, weight: Any, array: Callable[[Array], Any]) -> Any:
        """W + left right."""
        return weight + array(self.left.astype(np.float64)) @ array(self.right.astype(np.float64))


@dataclass(frozen=True, eq=False)
class LowRankUpdate(WeightEdit):
    """Weights changed by low-rank matrices, as LUNAR, UNLEARN, LEARN, Reveal-and-Release and imports end in.

    ``method`` names the one that fitted it. ``updates``: ascending by layer, then by role, each weight once. Imports
    change weights of attention too, which schema 1 does not hold, and embeddings and heads, which schema 2 does not.
    The figures of a report are the method's own, and in its ``details``.
    """

    kind = "low_rank_update"
    schema = 3
    title = "Low-rank update"
    unit = "rank"
    count_key = "rank"
    report_type = RetainReport
    method: str
    updates: tuple[WeightUpdate, ...]
    report: RetainReport = field(default_factory=RetainReport)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise PlanError(f"Low-rank update: no method is called {self.method!r}.")
        weights = [(update.layer, update.role) for update in self.updates]
        if not weights or weights != sorted(set(weights)):
            raise PlanError("Low-rank update: the weights are not in ascending order, each once, or there is none.")

    @property
    def schema_written(self) -> int:
        """1 without weights of attention, 2 without embeddings and heads."""
        if any(is_of_an_end(update.role) for update in self.updates):
            return 3
        return 1 if all(update.module is None for update in self.updates) else 2

    @property
    def explanation(self) -> str:
        """Of which layers the weights are."""
        layers = {
            "the embedding or head"
            if is_of_an_end(update.role)
            else "the feed-forward layers"
            if update.module is None
            else "attention"
            for update in self.updates
        }
        return f"A low-rank matrix is added to each of these weights of {' and '.join(sorted(layers))}."

    def settings(self) -> dict[str, Any]:
        """The method and the weights."""
        weights = [[update.layer, update.role, *([update.module] if update.module else [])] for update in self.updates]
        return {"method": self.method, "weights": weights}

    def arrays(self) -> dict[str, Array]:
        """Two factors a weight."""
        return {
            f"{update.layer}.{update.role}.{name}": factor
            for update in self.updates
            for name, factor in (("left", update.left), ("right", update.right))
        }

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From method, weights and factors."""
        updates = (
            WeightUpdate(
                layer,
                role,
                take(f"{layer}.{role}.left", np.float32),
                take(f"{layer}.{role}.right", np.float32),
                *module,
            )
            for layer, role, *module in settings["weights"]
        )
        return cls(settings["method"], tuple(updates), report)

    def weight_changes(self) -> tuple[WeightChange, ...]:
        """Weight by weight."""
        return self.updates

    def scaled(self, factor: float) -> Self:
        """The same matrices, ``factor`` times as large."""
        updates = (replace(update, left=update.left * np.float32(factor)) for update in self.updates)
        return replace(self, updates=tuple(updates))

    @property
    def name(self) -> str:
        """With the method."""
        return f"{self.title} by {self.method}"

    @classmethod
    def count_text(cls, count: int) -> str:
        """The rank."""
        return f"rank {count}"

    def figures(self) -> dict[str, Any]:
        """The method."""
        return {"method": self.method}
