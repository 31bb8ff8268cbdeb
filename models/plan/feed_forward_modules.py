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

    ``rows``: the part of the tensor's out axis that is W, as the start, the end and the step of a slice; None for all
    of it. ``transposed``: the tensor is [in, out]. ``slot``: the place of W in a stack, along a first axis.
    """

    name: str
    rows: tuple[int, ...] | None
    transposed: bool
    slot: int | None = None


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


@dataclass(frozen=True)
class ExpertModules(Figures):
    """Where a mixture of experts keeps the experts: ``paths`` of what holds those of each router, and names in it.

    An expert is a module of three linear layers by its number, or its weights are matrices [in, out] in stacks, the
    gates and ups in one (``up`` is None), where they alternate if ``interleaved``.
    """

    paths: tuple[str, ...]
    gate: str
    down: str
    up: str | None = None
    interleaved: bool | None = None

    def weight(self, router: int, expert: int, role: Role, width: int) -> StoredWeight:
        """Where the weight of ``role`` is stored; ``width`` is F."""
        path = self.paths[router]
        if self.up is not None:
            name = {"gate": self.gate, "up": self.up, "down": self.down}[role]
            return StoredWeight(f"{path}.{expert}.{name}.weight", None, False)
        if role == "down":
            return StoredWeight(f"{path}.{self.down}", None, True, expert)
        half = ("gate", "up").index(role)
        rows = (half, 2 * width, 2) if self.interleaved else (half * width, (half + 1) * width)
        return StoredWeight(f"{path}.{self.gate}", rows, True, expert)
