"""Which linear layers of a model a feed-forward layer (FFL) is, and where a checkpoint stores their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.report import Figures

# The linear layers of an FFL. "gate" makes the pre-activation, in an ungated FFL too; "up" only gated FFLs have.
Role = Literal["gate", "up", "down"]
# gated: act(gate(z)) * up(z). fused: gate and up are one linear layer of width 2F, the gate's half first.
# ungated: act(in(z)); "gate" then names the in-projection.
Layout = Literal["gated", "fused", "ungated"]


@dataclass(frozen=True)
class StoredWeight:
    """How a weight W [out, in] lies in the tensor ``name``.

    ``rows``: the part [start, end) of the tensor's out axis that is W, None for all of it. ``transposed``: the tensor
    is [in, out].
    """

    name: str
    rows: tuple[int, int] | None
    transposed: bool


@dataclass(frozen=True)
class FeedForwardModules(Figures):
    """The linear layers of one FFL, by their names in the model.

    ``up`` is None where the FFL has none of its own (``layout`` fused or ungated). ``transposed``: weights are stored
    [in, out], as GPT-2's ``Conv1D`` has them.
    """

    gate: str
    down: str
    layout: Layout
    transposed: bool
    up: str | None = None

    def roles(self) -> dict[str, tuple[Role, ...]]:
        """The weights that each module is, in the order of its rows, by the module's name."""
        own: dict[str, tuple[Role, ...]] = {
            self.gate: ("gate", "up") if self.layout == "fused" else ("gate",),
            self.down: ("down",),
        }
        return own if self.up is None else {**own, self.up: ("up",)}

    def weight(self, role: Role, width: int) -> StoredWeight:
        """Where the weight of ``role`` is stored; ``width`` is F. Raises ``PlanError`` where there is no such."""
        for module, roles in self.roles().items():
            if role in roles:
                start = roles.index(role) * width
                rows = (start, start + width) if len(roles) > 1 else None
                return StoredWeight(f"{module}.weight", rows, self.transposed)
        raise PlanError(
            f"The feed-forward layer of {self.gate} is ungated: it has no weight called {role!r}.",
            "Edit its 'gate' (the in-projection) or 'down'.",
        )
