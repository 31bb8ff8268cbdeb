"""Plans of one model put together: their interventions in order, a canary made anew, and what they do to one another.

Nothing is fitted again. An intervention that was fitted alone now runs with those of the plans before it, and behind it
come others: how far that moves what it looks at is measured on its own plan's canary, and told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bakeout.export.importing.new_plan import base_checkpoint, loaded_base, plan_of
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Intervention, Plan
from bakeout.models.plan.canary_check import compare_canary
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.progress import Track, untracked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far an intervention's values move, in the unit of its canary, before that is told as far: rounding is far less.
FAR = 0.1
# What differs from machine to machine, in the same unit.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Interaction:
    """What the other plans do to one intervention.

    ``intervention``: its place in the combined plan; ``plan``: which of the plans it comes from, counted from 0;
    ``fitted_without``: the places of those that now come before it and were not there when it was fitted; ``moved``:
    how far what it looks at is from what it was on its own plan's canary, as ``compare_canary`` measures it, None where
    nothing could be compared; ``sequences``: how many these are; ``decisions``: how many of them a check decides
    otherwise, None where it is no check.
    """

    intervention: int
    title: str
    plan: int
    fitted_without: tuple[int, ...]
    moved: float | None
    sequences: int
    decisions: int | None

    @property
    def is_far(self) -> bool:
        """Whether it no longer sees what it was fitted on."""
        return bool(self.decisions) or (self.moved is not None and self.moved > FAR)

    @property
    def has_moved(self) -> bool:
        """Whether it looks at other values than those that it was fitted on, or nothing tells."""
        return self.moved is None or self.moved > _ROUNDING

    def as_json(self) -> dict[str, Any]:
        """All of it, its figures to three digits."""
        moved = None if self.moved is None else float(f"{self.moved:.3g}")
        return {**asdict(self), "fitted_without": list(self.fitted_without), "moved": moved}

    def line(self) -> str:
        """All of it, for people."""
        before = ", ".join(map(str, self.fitted_without))
        fitted = f"fitted without {before}" if before else "nothing new before it"
        moved = "not comparable" if self.moved is None else f"moved by {self.moved:.3g} of its unit"
        decided = "" if self.decisions is None else f", {self.decisions} of {self.sequences} decided otherwise"
        return f"{self.intervention}  {self.title} (plan {self.plan}): {fitted}, {moved}{decided}" + (
            ": FAR" if self.is_far else ""
        )


@dataclass(frozen=True, eq=False)
class Combined:
    """The plan, and what its parts do to one another."""

    plan: Plan
    interactions: tuple[Interaction, ...]

    def lines(self) -> Iterator[str]:
        """The interactions, for people."""
        for interaction in self.interactions:
            yield interaction.line()


def combine(plans: Sequence[Plan], base: str, *, track: Track = untracked) -> Combined:
    """All interventions of ``plans``, in this order, as one plan for the checkpoint ``base``.

    The provenance names the plans by their digests and holds the interactions; data of one name must be the same data.
    The figures and the guarantee of a check whose keys the others move are left out: they are of the keys as they were.
    Checks of Key Space Detection become one, in the place of the first. Raises ``BakeoutError`` for fewer than two
    plans, for plans of different models or of another one than ``base``, and for checks that cannot become one.
    """
    if len(plans) < 2:
        raise BakeoutError("One plan alone has nothing to be combined with.", "Name two or more.")
    checkpoint = base_checkpoint(base)
    for number, plan in enumerate(plans):
        if plan.model.digest != checkpoint.digest:
            raise BakeoutError(
                f"Plan {number} was fitted on another model than {base}.",
                "Name its base model, and plans of that alone.",
            )
    interventions = [intervention for plan in plans for intervention in plan.interventions]
    whole, places = _joined(interventions)
    data = _data(plans)
    with loaded_base(checkpoint) as (model, _):
        interactions = tuple(_at(places, each) for each in _interactions(model, plans, interventions))
        record = {
            "plans": [hashlib.sha256(plan_bytes(plan)).hexdigest() for plan in plans],
            "interactions": [interaction.as_json() for interaction in interactions],
        }
        provenance = {**_common(plans), "data": data, "combined": record}
        canaries = [plan.canary for plan in plans]
        moved = {each.intervention for each in interactions if each.has_moved}
        whole = [_without_figures(each) if each.check and place in moved else each for place, each in enumerate(whole)]
        combined = plan_of(checkpoint, model, whole, provenance, track, canaries)
    return Combined(combined, interactions)


def _joined(interventions: Sequence[Intervention]) -> tuple[list[Intervention], list[int]]:
    """The interventions of the combined plan, and the place there of each of ``interventions``."""
    whole: list[Intervention] = []
    places: list[int] = []
    for intervention in interventions:
        taking = [place for place, other in enumerate(whole) if other.must_join(intervention)]
        if taking:
            places.append(taking[0])
            whole[taking[0]] = whole[taking[0]].joined(intervention)
        else:
            places.append(len(whole))
            whole.append(intervention)
    return whole, places


def _without_figures(check: Intervention) -> Intervention:
    """The check without what it covers and promises: that was counted on the keys that it was fitted to."""
    kind: Any = check
    counted_on_none: Intervention = replace(kind, report=kind.report_type())
    return counted_on_none


def _at(places: Sequence[int], interaction: Interaction) -> Interaction:
    """An interaction whose places are those of the combined plan."""
    before = dict.fromkeys(places[place] for place in interaction.fitted_without)
    place = places[interaction.intervention]
    return replace(interaction, intervention=place, fitted_without=tuple(other for other in before if other != place))


def _data(plans: Sequence[Plan]) -> dict[str, Any]:
    """The digests of all data. Raises ``BakeoutError`` where two plans have different data under one name."""
    data: dict[str, Any] = {}
    for plan in plans:
        for name, uses in plan.provenance.get("data", {}).items():
            if data.setdefault(name, uses) != uses:
                raise BakeoutError(
                    f"Two plans have different data called {name!r}.", "Fit one of them with another name."
                )
    return data


def _common(plans: Sequence[Plan]) -> dict[str, Any]:
    """What all plans that have it say alike of their model: chat template, type and device. Raises ``BakeoutError``."""
    common: dict[str, Any] = {}
    for plan in plans:
        for key in ("chat_template", "computed_in"):
            value = plan.provenance.get(key)
            if value is not None and common.setdefault(key, value) != value:
                raise BakeoutError(f"Two plans differ in their `{key}`.", "Fit them alike.")
    return common


def _interactions(
    model: PreTrainedModel, plans: Sequence[Plan], interventions: Sequence[Intervention]
) -> Iterator[Interaction]:
    from bakeout.models.reference.canary import canary_values
    from bakeout.models.reference.weight_edits import edited_weights

    first = 0
    with edited_weights(model, interventions):
        for number, plan in enumerate(plans):
            measured = canary_values(model, interventions, plan.canary.input_ids)
            for own, intervention in enumerate(plan.interventions):
                place = first + own
                expected, values = plan.canary.expected[own], measured[place]
                both = np.where(np.isnan(values), np.nan, expected)
                match = compare_canary(both, np.nan_to_num(values), intervention, 0.0)
                check, decisions = intervention.check, None
                if check is not None and not match.skipped:
                    decisions = int((check.is_inside(expected) != check.is_inside(values)).sum())
                yield Interaction(
                    place,
                    intervention.title,
                    number,
                    tuple(range(first)),
                    None if match.skipped else match.distance,
                    len(expected),
                    decisions,
                )
            first += len(plan.interventions)
