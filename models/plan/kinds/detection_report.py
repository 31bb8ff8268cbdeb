"""What the fit of a Key Space Detection reports: coverage, false refusals, and how its structure was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from bakeout.models.plan.kinds.report import Figures, FitReport

# Of shares and rates that were divided.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class FormCoverage(Figures):
    """How many ``queries`` in one form lie ``inside``, as a share."""

    queries: int
    inside: float


@dataclass(frozen=True, kw_only=True)
class SkillCoverage(Figures):
    """One skill to refuse: its cubes (the sizes of their clusters), its alpha, and what that covers.

    ``floored_dimensions``: per cube, how many deviations were raised to the floor. ``calibration_inside`` is a share,
    None without calibration queries; ``epsilon`` and ``guaranteed_coverage`` are None where alpha was given.
    ``variants``: of queries in another form beside the calibration queries; ``forms``: of the calibration queries
    themselves, where these are in several forms.
    """

    probe_queries: int
    cubes: tuple[int, ...]
    floored_dimensions: tuple[int, ...]
    alpha: float
    calibration_queries: int
    calibration_inside: float | None
    epsilon: float | None
    guaranteed_coverage: float | None
    largest_margin: float | None = None
    variants: Mapping[str, FormCoverage] | None = None
    forms: Mapping[str, FormCoverage] | None = None
    quantile: float | None = None

    @property
    def is_possible(self) -> bool:
        """Whether an alpha that is at least the conformal quantile at level 1 - epsilon can have these figures."""
        if self.epsilon is None or self.guaranteed_coverage is None:
            return self.epsilon is self.guaranteed_coverage
        queries, inside = self.calibration_queries, self.calibration_inside
        rank = math.ceil((queries + 1) * (1 - Fraction(str(self.epsilon))))
        is_held = rank <= queries and inside is not None and inside >= rank / queries - _ROUNDING
        return is_held and abs(self.guaranteed_coverage + self.epsilon - 1) <= _ROUNDING


@dataclass(frozen=True, kw_only=True)
class FalseRefusals(Figures):
    """How many ``queries`` of a name to retain are refused, as a ``rate`` with its Clopper-Pearson 95 % interval.

    ``forms``: the same by form, where the queries are in several.
    """

    queries: int
    refused: int
    rate: float
    interval: tuple[float, float]
    forms: Mapping[str, FormCoverage] | None = None


@dataclass(frozen=True, kw_only=True)
class StructureFigures(Figures):
    """A structure, and what it does on the selection queries: shares missed and refused, AUROC with its interval.

    ``cubes``: how many regions a skill, of the shape ``region``, None for cubes. ``keys``: None for key vectors.
    ``distance``: per name to retain, means over the sum of deviations; what is near is not taken. None in plans of
    before it was kept of every shape.
    """

    layers: tuple[int, ...]
    cubes: int
    floor: float
    epsilon: float
    alpha: Mapping[str, float]
    missed: float
    refused: Mapping[str, float]
    auroc: Mapping[str, tuple[float, ...]]
    error: float
    region: str | None = None
    keys: str | None = None
    distance: Mapping[str, float] | None = None

    @property
    def shape(self) -> str:
        """The shape of its regions."""
        return self.region or "cube"


@dataclass(frozen=True, kw_only=True)
class StructureChoice(Figures):
    """The chosen structure, and all that were looked at."""

    chosen: StructureFigures
    candidates: tuple[StructureFigures, ...]

    def regions(self) -> list[str]:
        """Of every shape the chosen candidate, or else the best, in words, where several were tried."""
        best: dict[str, StructureFigures] = {}
        for candidate in (*self.candidates, self.chosen):
            known = best.get(candidate.shape)
            if known is None or candidate.error < known.error or candidate is self.chosen:
                best[candidate.shape] = candidate
        return [_told(candidate) for candidate in best.values()] if len(best) > 1 else []


@dataclass(frozen=True, kw_only=True)
class KeySpaceDetectionReport(FitReport):
    """Per skill to refuse its coverage, per name to retain its false refusals, and what the cubes were made with.

    ``augment``: kinds of variants beside the queries; ``mixture``: the share of each form in which conversations were
    asked, plain included. What is guaranteed, and what is counted, is over that mixture.
    """

    augment: tuple[str, ...] | None = None
    mixture: Mapping[str, float] | None = None
    choice: StructureChoice | None = None
    floor: float | None = None
    dead_floor: float | None = None
    seed: int | None = None
    skills: Mapping[str, SkillCoverage] | None = None
    retain: Mapping[str, FalseRefusals] | None = None

    @property
    def contradiction(self) -> str:
        """Which figures contradict others; empty for none."""
        for skill, figures in (self.skills or {}).items():
            if not figures.is_possible:
                return f"the guarantee of {skill} does not follow from its calibration"
        for name, counts in (self.retain or {}).items():
            low, high = counts.interval
            if abs(counts.rate * counts.queries - counts.refused) > _ROUNDING or not low <= counts.rate <= high:
                return f"the false refusals of {name} are not those of its queries"
        return ""

    def facts(self) -> list[tuple[str, str]]:
        """The figures in words."""
        facts = super().facts()
        facts += [("coverage", _covered(skill, figures)) for skill, figures in (self.skills or {}).items()]
        facts += [("refused", _refused(name, figures)) for name, figures in (self.retain or {}).items()]
        if self.mixture:
            facts.append(("mixture", "conversations are asked " + _shares(self.mixture)))
            asked = {name: figures.forms for name, figures in (self.skills or {}).items()}
            asked |= {name: figures.forms for name, figures in (self.retain or {}).items()}
            facts += [("by form", f"{name}, inside: {_by_form(forms)}") for name, forms in asked.items() if forms]
        if self.augment:
            facts.append(("augmented", ", ".join(self.augment)))
        if self.floor is not None:
            facts.append(("floor", f"{self.floor:g}"))
        if self.choice is not None:
            facts += [("region", text) for text in self.choice.regions()]
            told = _told(self.choice.chosen)
            facts.append(("chosen", f"among {len(self.choice.candidates)} structures {told}, on the selection queries"))
        return facts


def _told(figures: StructureFigures) -> str:
    where = figures.keys or ("layers" if len(figures.layers) > 1 else "layer")
    layers = f"{where} {', '.join(map(str, figures.layers))}"
    outcome = f"{figures.missed:.1%} missed, at most {max(figures.refused.values(), default=0.0):.1%} refused falsely"
    apart = f", {min(figures.distance.values()):.1f} deviations apart" if figures.distance else ""
    return f"{figures.shape}, {figures.cubes} in {layers}: {outcome}{apart}"


def _covered(skill: str, figures: SkillCoverage) -> str:
    promise = "no guarantee, alpha was given"
    if figures.guaranteed_coverage is not None:
        asked = ", asked in the mixture of forms" if figures.forms else ""
        promise = f"at least {100 * figures.guaranteed_coverage:.4g} % of fresh ones{asked}"
    inside = ""
    if figures.calibration_inside is not None:
        inside = f"{figures.calibration_inside:.1%} of {figures.calibration_queries} calibration queries inside, "
    beyond = "" if figures.quantile is None else f", beyond the quantile's {figures.quantile:.4g}"
    return f"{skill}: {inside}{promise} (alpha {figures.alpha:.4g}{beyond})"


def _refused(name: str, figures: FalseRefusals) -> str:
    low, high = figures.interval
    return f"{name}: {figures.rate:.2%} of {figures.queries} queries, falsely (interval {low:.2%} to {high:.2%})"


def _shares(mixture: Mapping[str, float]) -> str:
    return ", ".join(f"{form} {share:.0%}" for form, share in mixture.items())


def _by_form(forms: Mapping[str, FormCoverage]) -> str:
    return ", ".join(f"{form} {figures.inside:.0%} of {figures.queries}" for form, figures in forms.items())
