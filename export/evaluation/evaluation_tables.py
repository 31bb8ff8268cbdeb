"""An evaluation as tables for people and as one CSV table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.artifact import disk_errors
from bakeout.export.console import emit_table
from bakeout.export.evaluation.evaluate import Evaluation, Row
from bakeout.export.evaluation.harness import TaskRow
from bakeout.export.evaluation.likelihood import TextRow
from bakeout.models.errors import BakeoutError

_INTERVALS = (
    "accuracy_interval",
    "refusals_interval",
    "change_interval",
    "perplexity_ratio_interval",
    "divergence_interval",
)
_COLUMNS = (
    *("model", "data", "prompts", "accuracy", "accuracy_low", "accuracy_high", "refusals", "refusals_low"),
    *("refusals_high", "change", "change_low", "change_high", "paired", "lost", "gained", "texts", "refused"),
    *("perplexity", "perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"),
    *("divergence", "divergence_low", "divergence_high"),
    *("task", "metric", "filter", "value", "standard_error"),
)


def print_evaluation(evaluation: Evaluation) -> None:
    """A row for each data file: every model's accuracy, its change from the base with the interval, and refusals."""
    if evaluation.rows:
        _print_rows(evaluation.rows)
    if evaluation.texts:
        emit_table(
            ["text", "model", "perplexity", "to base's", "95 %", "divergence", "95 %", "refused"],
            [_text_cells(row) for row in evaluation.texts],
            title="Text: perplexity, and divergence of the first token from the base in nats",
        )
    if evaluation.tasks:
        emit_table(
            ["task", "metric", "model", "value", "standard error"],
            [_task_cells(row) for row in evaluation.tasks],
            title="lm-evaluation-harness",
        )


def require_table(path: Path) -> None:
    """Raise ``BakeoutError``, before anything is measured, where no file can lie at ``path``."""
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a directory." if path.is_dir() else f"There is no directory {path.parent}."
        raise BakeoutError(what, "Name another file.")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """All rows as one table; what a row has no figure for is empty. Raises ``BakeoutError`` where it cannot be."""
    with disk_errors(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_flat(row.as_json()) for row in evaluation.rows)
        writer.writerows(_flat(text.as_json()) for text in evaluation.texts)
        writer.writerows(task.as_json() for task in evaluation.tasks)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in row.items() if key not in _INTERVALS}
    for name in _INTERVALS:
        if name in row:
            short = name.removesuffix("_interval")
            flat[f"{short}_low"], flat[f"{short}_high"] = row[name]
    return flat


def _print_rows(rows: Sequence[Row]) -> None:
    models = list(dict.fromkeys(row.model for row in rows))
    found = {(row.model, row.data): row for row in rows}
    columns = ["data", "prompts"]
    for model in models:
        changed = any(row.change for row in rows if row.model == model)
        columns += [model, *(["change, 95 %"] if changed else []), "refused"]
    table = []
    for name in dict.fromkeys(row.data for row in rows):
        cells = [name, str(next(row.prompts for row in rows if row.data == name))]
        for model in models:
            changed = any(row.change for row in rows if row.model == model)
            row = found.get((model, name))
            cells.append(f"{row.accuracy:.1%}" if row else "-")
            if changed:
                cells.append(_change(row))
            cells.append(f"{row.refusals:.1%}" if row else "-")
        table.append(cells)
    emit_table(columns, table)


def _change(row: Row | None) -> str:
    if row is None or row.change is None:
        return "-"
    low, high = row.change.interval
    return f"{100 * row.change.accuracy:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _text_cells(row: TextRow) -> list[str]:
    cells = [row.data, row.model, "-" if row.perplexity is None else f"{row.perplexity:.4g}"]
    for value, interval in ((row.ratio, row.ratio_interval), (row.divergence, row.divergence_interval)):
        shown = value is not None and interval is not None
        cells += [f"{value:.4g}", f"[{interval[0]:.4g}, {interval[1]:.4g}]"] if shown and interval else ["-", "-"]
    return [*cells, f"{row.refused} of {row.texts}"]


def _task_cells(row: TaskRow) -> list[str]:
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
    return [row.task, metric, row.model, f"{row.value:.4f}", error]
