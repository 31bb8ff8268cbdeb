"""The JSON of ``bakeout evaluate`` and ``bakeout demo``, read back for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from bakeout.export.evaluation.rows import Evaluation, Inputs, Row, TaskRow, TextRow, with_nested_change
from bakeout.export.report.figures_file import read_json_as


def _whole(row: TextRow) -> TextRow:
    for name in ("perplexity_ratio", "divergence"):
        if (getattr(row, name) is None) != (getattr(row, f"{name}_interval") is None):
            raise ValueError(f"{name} and its interval belong together")
    return row


class _File(BaseModel):
    schema_number: Literal[1] = Field(alias="schema")
    rows: tuple[Annotated[Row, BeforeValidator(with_nested_change)], ...]
    texts: tuple[Annotated[TextRow, AfterValidator(_whole)], ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    inputs: Inputs | None = None


def read_evaluation(path: Path) -> Evaluation:
    """One evaluation. Raises ``BakeoutError`` naming what is wrong, and where."""
    file = read_json_as(_File, path, "Give the JSON that `bakeout evaluate` printed.")
    return Evaluation(file.rows, file.texts, file.tasks, file.inputs)
