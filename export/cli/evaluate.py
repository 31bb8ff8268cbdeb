"""`bakeout evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.cli.console import emit_json, emit_table, progress
from bakeout.export.cli.options import PATH, directories, json_output

if TYPE_CHECKING:
    from bakeout.export.evaluation.rows import Evaluation, Row, TaskRow, TextRow


@click.command()
@directories
@click.option("--data", type=PATH, multiple=True, help="JSONL with prompts and responses; repeatable.")
@click.option(
    "--text", "texts", type=PATH, multiple=True, help="JSONL to measure perplexity and divergence on; repeatable."
)
@click.option("--tasks", help="Tasks of lm-evaluation-harness, as in gsm8k,mmlu.")
@click.option("--task-directory", type=PATH, help="Directory with the YAML files of more tasks.")
@click.option("--task-code", is_flag=True, help="Let these tasks run the Python functions that they name.")
@click.option("--few-shot", type=click.IntRange(0), help="Examples before each question; by default the task's number.")
@click.option("--limit", type=click.IntRange(1), help="Ask at most this many questions of each task.")
@click.option("--chat-template", is_flag=True, help="Put tasks' prompts through the tokenizer's chat template.")
@click.option("--base", type=PATH, help="The base model: its checkpoint's directory, or an ONNX one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--csv", "table", type=PATH, help="Write all figures to this file too; it must not exist.")
@json_output
def evaluate(
    directories: tuple[Path, ...],
    data: tuple[Path, ...],
    texts: tuple[Path, ...],
    tasks: str | None,
    task_directory: Path | None,
    task_code: bool,
    few_shot: int | None,
    limit: int | None,
    chat_template: bool,
    base: Path | None,
    batch_size: int,
    table: Path | None,
    machine: bool,
) -> None:
    """Measure artifacts beside the base model.

    --data: accuracy (exact match, surrounding whitespace aside) and refusals. The base model is measured too if --base
    names it; otherwise its figures are those stored when the artifact was built on the same data. Changes come with
    Newcombe's 95 % interval: for pairs with --base, for two samples without it.

    --text: perplexity of responses or plain text, and with --base the divergence of the first token from the base's.

    --tasks: the tasks of lm-evaluation-harness (pip install "bakeout[harness]"). A refusal appears only in generated
    text, so it does not show in log-likelihood tasks such as mmlu.
    """
    if not data and not texts and not tasks:
        raise click.UsageError("Missing option '--data', '--text' or '--tasks'.")
    if not tasks and (task_directory or task_code or few_shot is not None or limit or chat_template):
        raise click.UsageError("Missing option '--tasks': the other options about tasks have no effect without it.")
    from bakeout.export.evaluation.csv_table import write_csv
    from bakeout.export.evaluation.evaluate import evaluate
    from bakeout.export.evaluation.harness import Tasks
    from bakeout.models.files.writing import require_new

    if table is not None:
        require_new(table)
    chosen = Tasks(_names(tasks), task_directory, few_shot, limit, chat_template, task_code) if tasks else None
    with progress() as track:
        evaluation = evaluate(
            directories, data, texts=texts, tasks=chosen, base=base, batch_size=batch_size, track=track
        )
    if table is not None:
        write_csv(evaluation, table)
    if machine:
        emit_json(evaluation.as_json())
    else:
        print_evaluation(evaluation)


def _names(tasks: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise click.UsageError("--tasks names no task.")
    return names


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


def _print_rows(rows: Sequence[Row]) -> None:
    models = list(dict.fromkeys(row.model for row in rows))
    row_of = {(row.model, row.data): row for row in rows}
    columns = ["data", "prompts"]
    for model in models:
        changed = any(row.change for row in rows if row.model == model)
        columns += [model, *(["change, 95 %"] if changed else []), "refused"]
    table = []
    for name in dict.fromkeys(row.data for row in rows):
        cells = [name, str(next(row.prompts for row in rows if row.data == name))]
        for model in models:
            changed = any(row.change for row in rows if row.model == model)
            row = row_of.get((model, name))
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
    for value, interval in (
        (row.perplexity_ratio, row.perplexity_ratio_interval),
        (row.divergence, row.divergence_interval),
    ):
        shown = value is not None and interval is not None
        cells += [f"{value:.4g}", f"[{interval[0]:.4g}, {interval[1]:.4g}]"] if shown and interval else ["-", "-"]
    return [*cells, f"{row.refused} of {row.texts}"]


def _task_cells(row: TaskRow) -> list[str]:
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
    return [row.task, metric, row.model, f"{row.value:.4f}", error]
