"""A structure of regions that was tried, and the choice among several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bakeout.models.methods.key_space_detection.options import Structure
from bakeout.models.methods.key_space_detection.separation import Auroc, Share
from bakeout.models.plan.kinds.detection_report import StructureChoice, StructureFigures

# Tolerated shares of correct answers: left of a skill to forget, and lost of any other. Errors are measured in these.
LEFT, LOST = 0.02, 0.01


@dataclass(frozen=True)
class Candidate:
    """A structure, and its effect on the selection split.

    ``alpha``: per skill to forget, the smallest value that contains all but epsilon of its queries. ``missed``: the
    share of queries outside, for the worst skill; ``refused``: the share of queries inside, for each name to retain;
    both count queries that the base model answers correctly. ``auroc``, ``distance``: per name to retain, against the
    skill from which it is hardest to separate; ``distance`` in forms that the regions were fitted to and in others.
    ``block``: the deepest layer's, where a refusal can leave the model.
    """

    structure: Structure
    block: int
    alpha: Mapping[str, float]
    missed: Share
    refused: Mapping[str, Share]
    auroc: Mapping[str, Auroc]
    distance: Mapping[str, float]

    @property
    def place(self) -> tuple[int, bool]:
        """How deep the last key is that is tested: the block, and in one block routers before FFLs."""
        return self.block, self.structure.keys == "key_vector"

    @property
    def least_distance(self) -> float:
        """The distance of the name that lies nearest."""
        return min(self.distance.values())

    @property
    def worst_auroc(self) -> Auroc:
        """The AUROC of the name that is hardest to separate."""
        return min(self.auroc.values(), key=lambda area: area.value)

    @property
    def error(self) -> float:
        """The larger of the missed and the falsely refused share, each in units of its tolerated share."""
        return max(self.missed.value / LEFT, *(share.value / LOST for share in self.refused.values()))

    @property
    def highest_error(self) -> float:
        """The upper end of the error's interval (Clopper-Pearson, of the worst share)."""
        ends = [(self.missed.value / LEFT, self.missed.interval()[1] / LEFT)]
        ends += [(share.value / LOST, share.interval()[1] / LOST) for share in self.refused.values()]
        return max(ends)[1]

    @property
    def feared_error(self) -> float:
        """The error if every share were at the upper end of its interval, so that few queries are no advantage."""
        ends = [share.interval()[1] / LOST for share in self.refused.values()]
        return max(self.missed.interval()[1] / LEFT, *ends)

    def figures(self) -> StructureFigures:
        """The candidate as a row of a table."""
        return StructureFigures(
            layers=self.structure.layers,
            cubes=self.structure.cubes,
            floor=self.structure.floor,
            epsilon=self.structure.epsilon,
            alpha=dict(self.alpha),
            missed=self.missed.value,
            refused={name: share.value for name, share in self.refused.items()},
            auroc={name: (area.value, area.low, area.high) for name, area in self.auroc.items()},
            error=self.error,
            region=None if self.structure.region == "cube" else self.structure.region,
            keys=None if self.structure.keys == "key_vector" else self.structure.keys,
            # Margins without any deviation are infinitely far apart, which JSON cannot say.
            distance={name: apart for name, apart in self.distance.items() if math.isfinite(apart)} or None,
        )


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and all that were examined."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]

    def figures(self) -> StructureChoice:
        """The choice with its table, for an intervention's report."""
        return StructureChoice(
            chosen=self.chosen.figures(), candidates=tuple(candidate.figures() for candidate in self.candidates)
        )
