"""What every section of the protocol measures with: the models, the data with their graders, and the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bakeout.export.certificate.models import Models, Which
from bakeout.export.certificate.protocol import Precision, Protocol
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.graders.grader import AnswerGrader, Grader
from bakeout.export.evaluation.grading import Graded, grade
from bakeout.export.recipes.data_files import Columns
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.models.data.row_source import Source
from bakeout.models.errors import BakeoutError
from bakeout.models.progress import Track

_logger = logging.getLogger(__name__)

Role = Literal["forget", "retain", "stranger", "fitted", "real authors", "world facts"]
# Prompts that share a batch share the scale that their data are quantised by in such a graph.
_SHARES_A_SCALE = ("int8", "quantised")
MODELS: tuple[Which, Which] = ("base", "artifact")


@dataclass(frozen=True)
class Data:
    """One file: what it is to the artifact, and how its answers are judged. ``columns``: the keys its rows have."""

    name: str
    role: Role
    source: Source
    grader: Grader
    columns: Columns = field(default_factory=dict)

    @property
    def answers(self) -> AnswerGrader | None:
        """The grader, where it judges answers that were generated."""
        return self.grader if isinstance(self.grader, AnswerGrader) else None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of some rows: bool [rows] each, and the grader's scores, float64 [rows], if it gives any."""

    right: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    scores: NDArray[np.float64] | None

    @classmethod
    def of(cls, graded: Graded) -> Outcome:
        """Of rows that were graded."""
        return cls(graded.correct, graded.refused, graded.scores)

    def as_json(self) -> dict[str, Any]:
        """As a journal holds it."""
        scores = None
        if self.scores is not None:
            scores = [None if np.isnan(score) else float(score) for score in self.scores]
        return {"right": _written(self.right), "refused": _written(self.refused), "scores": scores}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Outcome:
        """What ``as_json`` gave."""
        scores = content["scores"]
        known = None if scores is None else np.array([np.nan if score is None else score for score in scores])
        return cls(_read(content["right"]), _read(content["refused"]), known)


@dataclass(frozen=True)
class Measuring:
    """One run of the protocol. ``hides``: the certificate names nothing of the data."""

    protocol: Protocol
    models: Models
    data: Sequence[Data]
    journal: Journal
    most_at_once: int
    max_new_tokens: int | None
    track: Track
    hides: bool = False

    def of(self, *roles: Role) -> list[Data]:
        """The data of some roles."""
        return [data for data in self.data if data.role in roles]

    def reason(self, error: BakeoutError | ModuleNotFoundError) -> str:
        """Why something was not measured, for the certificate: what the error says, which may name files and rows."""
        told = error.cause if isinstance(error, BakeoutError) else str(error)
        if not self.hides:
            return told
        _logger.warning(f"Not measured, for a reason that the certificate hides: {told}")
        return "it failed, for a reason that was told when it was measured, and is hidden here"

    @property
    def batch_size(self) -> int:
        """How many prompts are answered at once in the artifact's own precision."""
        return self._batch_size(self.models.own)

    @property
    def options(self) -> EvaluateOptions:
        """How answers are generated where nothing is drawn."""
        return EvaluateOptions(
            rows=self.protocol.rows, max_new_tokens=self.max_new_tokens or "auto", batch_size=self.batch_size
        )

    def outcome(self, which: Which, precision: Precision | str, data: Data) -> Outcome:
        """What a model in a precision answers to ``data``, greedily."""

        def measure() -> dict[str, Any]:
            graded = grade(
                self.models.runner(which, precision),
                data.source,
                self.models.refusals_of(which),
                by=data.grader,
                options=self.options.model_copy(update={"batch_size": self._batch_size(precision)}),
                track=self.track,
                description=f"{which} in {precision} on {data.name}",
            )
            return Outcome.of(graded).as_json()

        return Outcome.from_json(self.step(which, f"answers {which} {precision} {data.name}", measure))

    def step(self, which: Which, step: str, measure: Callable[[], Any]) -> Any:
        """A step of the journal, measured on one of the models alone."""
        return self.journal.step(step, measure, of_base=which == "base")

    def _batch_size(self, precision: Precision | str) -> int:
        return 1 if precision in _SHARES_A_SCALE else self.most_at_once


def _written(flags: NDArray[np.bool_]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _read(flags: str) -> NDArray[np.bool_]:
    return np.array([flag == "1" for flag in flags], dtype=bool)
