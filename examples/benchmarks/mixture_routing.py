"""How a plan leaves the routing of a mixture of experts: the figure that Bakeout reports for every one."""

from __future__ import annotations

from collections.abc import Sequence

from bench import Bench

from bakeout.models.plan import Plan
from bakeout.models.reference.routing import routing_stability
from bakeout.models.skills.generator import SKILLS

# Texts of each kept skill whose routing is compared.
_TEXTS = 16


def stability(bench: Bench, plan: Plan, forgotten: Sequence[str]) -> list[float]:
    """The share of tokens of the kept skills' texts that go to the same experts: of all routers, then of each."""
    kept = [skill for skill in SKILLS if skill not in forgotten]
    texts = [
        record.prompt_ids + record.response_ids
        for skill in kept
        for record in bench.records(skill, "calibration", _TEXTS)
    ]
    found = routing_stability(bench.model, plan, texts)
    assert found is not None
    return [found.unchanged, *found.routers]
