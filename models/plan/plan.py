"""The plan: interventions as inert arrays, the model they were fitted on, and its canary. NumPy alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.models.plan.arrays import Floats, Integers, PlanError
from bakeout.models.plan.kinds.check import Check, Positions
from bakeout.models.plan.kinds.intervention import Intervention
from bakeout.models.plan.model_identity import ModelIdentity
from bakeout.models.plan.routing_stability import ROUTING, RoutingStability


@dataclass(frozen=True, eq=False)
class Canary:
    """A few token sequences and what the model computes on them, to tell a same-shaped wrong model.

    ``input_ids``: int64 [sequences, tokens], no padding. ``expected``: per intervention float64 [sequences, values],
    with all interventions in force; what the values are, its kind says. Values downstream of a stochastic coin are NaN
    and are not compared, nor are those of refused sequences behind the check's layers, which graphs may not compute,
    nor those of experts that a sequence's last token is not sent to.

    ``refused``: which sequences the plan's check refuses, as prompts of their own, whichever positions it tests; None
    where it has no check, where a coin decides, and in plans of Bakeout 0.1.0 and 0.2.0. ``uncovered``: the check's
    regions that no sequence is known to lie in.
    """

    input_ids: Integers
    expected: tuple[Floats, ...]
    refused: tuple[bool, ...] | None = None
    uncovered: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """Interventions in order, the model they were fitted on, a canary, and where the data came from.

    Each intervention was fitted with those before it applied; a model that carries the plan applies all of them
    at once. ``provenance`` is JSON: digests of the data and the versions that fitted the plan.

    >>> plan = bakeout.load_plan("plan.safetensors")
    >>> plan.model.architecture, plan.model.layers
    ('llama', 6)
    >>> [intervention.kind for intervention in plan.interventions]
    ['neuron_adjust']
    """

    model: ModelIdentity
    interventions: tuple[Intervention, ...]
    canary: Canary
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.interventions:
            raise PlanError("The plan holds no intervention.")
        if len(self.canary.expected) != len(self.interventions):
            raise PlanError("The canary does not have one entry per intervention.")
        alone = Counter(intervention.title for intervention in self.interventions if intervention.at_most_one)
        for title, count in alone.items():
            if count > 1:
                raise PlanError(f"The plan holds {count} of {title}.", "Fit one that does what all of them do.")
        for intervention in self.interventions:
            intervention.require_fit(self.model)
        ids = self.canary.input_ids
        if ids.ndim != 2 or 0 in ids.shape or bool(np.any(ids < 0)) or bool(np.any(ids >= self.model.vocabulary)):
            raise PlanError("The canary's tokens are not in the model's vocabulary.")
        if self.canary.refused is not None and (self.check is None or len(self.canary.refused) != len(ids)):
            raise PlanError("The canary says of other sequences than its own that they are refused.")
        if not set(self.canary.uncovered) <= set(range(len(self.check.alpha) if self.check else 0)):
            raise PlanError("The canary names regions that the plan's check does not have.")
        for values in self.canary.expected:
            if values.ndim != 2 or len(values) != len(ids) or bool(np.any(np.isinf(values))):
                raise PlanError("The canary's expected values are malformed.")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one safetensors file: arrays and JSON, no code. ``load_plan`` reads it."""
        from bakeout.models.plan.plan_file import save_plan

        save_plan(self, Path(path))

    @property
    def edits_weights(self) -> bool:
        """Whether an intervention changes weights."""
        return any(intervention.edits_weights for intervention in self.interventions)

    @property
    def edits_graph(self) -> bool:
        """Whether an intervention acts on what the model computes, which no weight can express."""
        return not all(intervention.edits_weights for intervention in self.interventions)

    @property
    def routing_stability(self) -> RoutingStability | None:
        """How the interventions leave the routing of retained data, if the model is a mixture of experts."""
        figures = self.provenance.get(ROUTING)
        return None if figures is None else RoutingStability.from_json(figures, ROUTING)

    @property
    def is_stochastic(self) -> bool:
        """Whether an intervention draws: then two runs give different tokens."""
        return any(intervention.is_stochastic for intervention in self.interventions)

    @property
    def check(self) -> Check | None:
        """The check of the intervention that refuses, if one does."""
        return next((intervention.check for intervention in self.interventions if intervention.check is not None), None)

    @property
    def contradiction(self) -> str:
        """In what the plan contradicts itself, as no fit leaves it; empty for nothing."""
        for intervention, expected in zip(self.interventions, self.canary.expected, strict=True):
            if intervention.contradiction:
                return f"{intervention.title}: {intervention.contradiction}"
            if intervention.check is not None and self.canary.refused is not None:
                if expected.shape[1] != len(intervention.check.alpha):
                    return f"{intervention.title}: the canary is of another number of regions"
                if tuple(intervention.check.is_inside(expected)) != self.canary.refused:
                    return f"{intervention.title}: with these alphas the canary's refusals are not those that it lists"
        unknown = set(self.forgets) - set(self.provenance.get("data", self.forgets))
        return f"it forgets {sorted(unknown)[0]}, and its provenance names no such data" if unknown else ""

    def at_positions(self, positions: Positions) -> Plan:
        """The same plan, its check testing other positions."""
        return replace(
            self, interventions=tuple(intervention.at_positions(positions) for intervention in self.interventions)
        )

    @property
    def forgets(self) -> tuple[str, ...]:
        """The names of the data that the interventions were fitted to forget, each once."""
        return tuple(dict.fromkeys(name for intervention in self.interventions for name in intervention.forgets))

    def known_as(self, digest: str) -> tuple[str, ...]:
        """The names under which the plan has the file of this digest; a hidden plan, whose digests are salted, none."""
        return tuple(name for name, uses in self.provenance.get("data", {}).items() if digest in uses.values())

    @property
    def learns(self) -> tuple[str, ...]:
        """The names of the data that the interventions were fitted to teach, each once."""
        return tuple(dict.fromkeys(name for intervention in self.interventions for name in intervention.learns))
