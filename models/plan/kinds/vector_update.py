"""Vectors added to norms' weights and biases: what of a full fine-tuning is in no matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, Floats32, Integers, PlanError, require_finite, require_layer
from bakeout.models.plan.kinds.description import Part, counted
from bakeout.models.plan.kinds.intervention import Take
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.weight_change import WeightChange
from bakeout.models.plan.kinds.weight_edit import WeightEdit


@dataclass(frozen=True, eq=False)
class UpdatedVector(WeightChange):
    """What is added to one parameter that is a vector of n elements, taken as a weight W [n, 1].

    ``parameter``: its name in the model. ``before`` float32 [n]: its values in the model, by which graphs are
    searched for it. ``added`` float64 [n]: so that every float32 vector can be reached exactly. ``layer``: its block;
    of what lies in none, the last.
    """

    layer: int
    parameter: str
    before: Floats32
    added: Floats
    role: Literal["vector"] = "vector"

    def __post_init__(self) -> None:
        where = f"Vector update, {self.parameter}"
        require_layer(self.layer, where)
        if not isinstance(self.parameter, str) or not self.parameter:
            raise PlanError("Vector update: a parameter has no name.")
        if self.before.ndim != 1 or self.before.shape != self.added.shape or not len(self.before):
            raise PlanError(f"{where}: vectors of shapes {self.before.shape} and {self.added.shape} have no sum.")
        require_finite(self.before, f"{where}: before")
        require_finite(self.added, f"{where}: added")

    @property
    def place(self) -> str:
        """The parameter's name."""
        return self.parameter

    @property
    def count(self) -> int:
        """How many elements change."""
        return int(np.count_nonzero(self.added))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is as long."""
        return shape == (len(self.added), 1)

    def asked(self, before: Floats, rows: slice, columns: slice | Integers) -> Floats:
        """What is added."""
        block: Floats = self.added[:, None][rows, columns]
        return block

    def formula(self, weight: Any, array: Callable[[Array], Any]) -> Any:
        """W + added."""
        return weight + array(self.added[:, None])


@dataclass(frozen=True, eq=False)
class VectorUpdate(WeightEdit):
    """Norms' weights and biases changed by vectors, as imports of fully fine-tuned checkpoints hold beside matrices.

    ``method`` names what it comes from. ``vectors``: ascending by layer, then by name, each once.
    """

    kind = "vector_update"
    title = "Vector update"
    unit = "element"
    count_key = "elements"
    explanation = "A vector is added to each of these weights of norms and biases."
    report_type = RetainReport
    method: str
    vectors: tuple[UpdatedVector, ...]
    report: RetainReport = field(default_factory=RetainReport)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise PlanError(f"Vector update: no method is called {self.method!r}.")
        places = [(vector.layer, vector.parameter) for vector in self.vectors]
        if not places or places != sorted(set(places)):
            raise PlanError("Vector update: the vectors are not in ascending order, each once, or there is none.")

    def settings(self) -> dict[str, Any]:
        """The method and the parameters."""
        return {"method": self.method, "vectors": [[vector.layer, vector.parameter] for vector in self.vectors]}

    def arrays(self) -> dict[str, Array]:
        """Two vectors a parameter."""
        return {
            f"{vector.parameter}.{name}": array
            for vector in self.vectors
            for name, array in (("before", vector.before), ("added", vector.added))
        }

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From method, parameters and vectors."""
        vectors = (
            UpdatedVector(
                layer, parameter, take(f"{parameter}.before", np.float32), take(f"{parameter}.added", np.float64)
            )
            for layer, parameter in settings["vectors"]
        )
        return cls(settings["method"], tuple(vectors), report)

    def weight_changes(self) -> tuple[WeightChange, ...]:
        """Vector by vector."""
        return self.vectors

    @property
    def name(self) -> str:
        """With the method."""
        return f"{self.title} by {self.method}"

    @property
    def summary(self) -> str:
        """How many vectors, of how many layers."""
        layers = counted(len({vector.layer for vector in self.vectors}), "layer")
        return f"{counted(len(self.vectors), 'vector')} in {layers}"

    @property
    def parts(self) -> tuple[Part, ...]:
        """One for every vector."""
        return tuple(
            Part(vector.layer, vector.count, f"{self.count_text(vector.count)} of {vector.parameter}", vector.role)
            for vector in self.vectors
        )

    def figures(self) -> dict[str, Any]:
        """The method and the parameters."""
        return {"method": self.method, "parameters": [vector.parameter for vector in self.vectors]}
