"""An evaluation as one CSV table."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from bakeout.export.evaluation.rows import Evaluation
from bakeout.models.files.csv_cells import as_cell
from bakeout.models.files.writing import write_file

_INTERVALS = (
    "accuracy_interval",
    "refusals_interval",
    "wrong_interval",
    "cut_off_interval",
    "score_interval",
    "score_ratio_interval",
    "change_interval",
    "perplexity_ratio_interval",
    "divergence_interval",
)
_COLUMNS = (
    *("model", "data", "prompts", "accuracy", "accuracy_low", "accuracy_high", "refusals", "refusals_low"),
    *("refusals_high", "wrong", "wrong_low", "wrong_high", "cut_off", "cut_off_low", "cut_off_high"),
    *("grade", "available", "score_name", "score", "score_low", "score_high"),
    *("score_ratio", "score_ratio_low", "score_ratio_high", "change", "change_low", "change_high"),
    *("paired", "lost", "gained", "texts", "refused", "perplexity"),
    *("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"),
    *("divergence", "divergence_low", "divergence_high"),
    *("task", "metric", "filter", "value", "standard_error"),
)


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """All rows as one table; what a row has no figure for is empty. Raises ``BakeoutError`` where it cannot be."""
    table = StringIO()
    writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = [_flat(row.as_json()) for row in evaluation.rows]
    rows += [_flat(text.as_json()) for text in evaluation.texts]
    rows += [task.as_json() for task in evaluation.tasks]
    writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    write_file(path, table.getvalue())


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    if (score := row.pop("score", None)) is not None:
        names = {"name": "score_name", "mean": "score", "interval": "score_interval"}
        row |= {names.get(key, f"score_{key}"): value for key, value in score.items()}
    flat = {key: value for key, value in row.items() if key not in _INTERVALS}
    for name in _INTERVALS:
        if name in row:
            short = name.removesuffix("_interval")
            flat[f"{short}_low"], flat[f"{short}_high"] = row[name]
    return flat
