"""Routing stability: the figure that every plan for a mixture of experts carries."""

from __future__ import annotations

from dataclasses import dataclass

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.report import Figures

# What a plan's provenance calls it.
ROUTING = "routing"


@dataclass(frozen=True)
class RoutingStability(Figures):
    """How interventions leave tokens with the experts that the base model sends them to (GRIP, arXiv 2601.16905).

    ``unchanged``: the share of (token, router) with the same set of experts, over ``tokens`` tokens; ``routers``: that
    of each router, from the embedding upwards.
    """

    unchanged: float
    tokens: int
    routers: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.routers or not all(0 <= share <= 1 for share in (self.unchanged, *self.routers)):
            raise PlanError("The routing stability is not that of a mixture of experts.")

    def __str__(self) -> str:
        lowest = min(range(len(self.routers)), key=self.routers.__getitem__)
        return (
            f"{100 * self.unchanged:.2f} % of {self.tokens} tokens go to the same experts "
            f"(least in router {lowest}: {100 * self.routers[lowest]:.2f} %)"
        )
