"""What ``bakeout evaluate --json`` and ``bakeout demo --json`` print, read back for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bakeout.export.report.figures_file import Share, read_json_as

Number = Annotated[float, Field(allow_inf_nan=False)]
Interval = tuple[Number, Number]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class AnswersRow(_Part):
    """One model on one data file."""

    model: str
    data: str
    prompts: int = Field(gt=0)
    accuracy: Share
    refusals: Share
    change: Number | None = None
    change_interval: Interval | None = None


class TextsRow(_Part):
    """One model on one file of text."""

    model: str
    data: str
    texts: int
    refused: int
    perplexity: Number | None
    perplexity_ratio: Number | None = None
    perplexity_ratio_interval: Interval | None = None
    divergence: Number | None = None
    divergence_interval: Interval | None = None


class MetricRow(_Part):
    """One metric of one of lm-evaluation-harness's tasks."""

    model: str
    task: str
    metric: str
    filter: str = "none"
    value: Number
    standard_error: Number | None = None


class EvaluationFile(_Part):
    """A whole evaluation."""

    schema_number: Literal[1] = Field(alias="schema")
    rows: list[AnswersRow]
    texts: list[TextsRow] = []
    tasks: list[MetricRow] = []


def read_evaluation(path: Path) -> EvaluationFile:
    """One evaluation. Raises ``BakeoutError`` naming what is wrong, and where."""
    return read_json_as(EvaluationFile, path, "Give what `bakeout evaluate --json` printed.")
