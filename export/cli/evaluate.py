"""`bakeout evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bakeout.export.cli.console import emit_json, emit_table, progress
from bakeout.export.cli.grades import columns_option, graders, named_columns
from bakeout.export.cli.options import PATH, chosen_template, directories, json_output, template_options

if TYPE_CHECKING:
    from bakeout.export.evaluation.intervals import Interval
    from bakeout.export.evaluation.rows import Evaluation, Row, TaskRow, TextRow


@click.command()
@directories
@click.option("--data", type=PATH, multiple=True, help="JSONL with prompts and responses; repeatable.")
@click.option(
    "--text", "texts", type=PATH, multiple=True, help="JSONL to measure perplexity and divergence on; repeatable."
)
@columns_option
@click.option(
    "--grade",
    "grades",
    multiple=True,
    metavar="[NAME=]GRADER",
    help="How the answers to a file, or to all, are judged, as in gsm8k=number; repeatable.",
)
@click.option("--rows", type=click.IntRange(1), help="Measure at most this many rows of each file; by default all.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Where answers are cut off.")
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of answers that are drawn."
)
@click.option("--answers", type=PATH, help="Write every answer to this file at once, and go on with those in it.")
@click.option("--tasks", help="Tasks of lm-evaluation-harness, as in gsm8k,mmlu.")
@click.option("--task-directory", type=PATH, help="Directory with the YAML files of more tasks.")
@click.option("--task-code", is_flag=True, help="Let these tasks run the Python functions that they name.")
@click.option("--few-shot", type=click.IntRange(0), help="Examples before each question; by default the task's number.")
@click.option("--limit", type=click.IntRange(1), help="Ask at most this many questions of each task.")
@click.option(
    "--chat-template", "chats", is_flag=True, help="Put tasks' prompts through the tokenizer's chat template."
)
@click.option("--base", type=PATH, help="The base model: its checkpoint's directory or hub id, or an ONNX one.")
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "genai"]),
    default="onnxruntime",
    show_default=True,
    help="What generates answers; genai for artifacts with genai_config.json, and all that can have one.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--csv", "table", type=PATH, help="Write all figures to this file too; it must not exist.")
@template_options
@json_output
def evaluate(
    directories: tuple[Path, ...],
    data: tuple[Path, ...],
    texts: tuple[Path, ...],
    columns: tuple[str, ...],
    grades: tuple[str, ...],
    rows: int | None,
    max_new_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int,
    answers: Path | None,
    tasks: str | None,
    task_directory: Path | None,
    task_code: bool,
    few_shot: int | None,
    limit: int | None,
    chats: bool,
    base: Path | None,
    runtime: Literal["onnxruntime", "genai"],
    batch_size: int,
    table: Path | None,
    chat_template: str | None,
    arguments: tuple[str, ...],
    date: str | None,
    machine: bool,
) -> None:
    """Measure artifacts beside the base model.

    --data: accuracy (exact match, surrounding whitespace aside) and refusals. The base model is measured too if --base
    names it; otherwise its figures are those stored when the artifact was built on the same data. Changes come with
    Newcombe's 95 % interval: for pairs with --base, for two samples without it.

    --grade: exact, contains, number, choice, rouge, regex, python or likelihood, with options as in
    'code={python: {show_tests: 1}}'; `bakeout recipe --explain` lists them. An answer is right, wrong, cut off or
    refused.

    --text: perplexity of responses or plain text, and with --base the divergence of the first token from the base's.

    --tasks: the tasks of lm-evaluation-harness (pip install "bakeout[harness]"). A refusal is generated text, so
    log-likelihood tasks such as mmlu do not count it.
    """
    if not data and not texts and not tasks:
        raise click.UsageError("Missing option '--data', '--text' or '--tasks'.")
    if not tasks and (task_directory or task_code or few_shot is not None or limit or chats):
        raise click.UsageError("Missing option '--tasks': the other options about tasks have no effect without it.")
    if not data and (grades or answers or max_new_tokens or temperature):
        raise click.UsageError("Missing option '--data': the other options about answers have no effect without it.")
    if columns and not data and not texts:
        raise click.UsageError("Missing option '--data' or '--text': '--columns' has no effect without them.")
    if not temperature and (top_p != 1.0 or seed):
        raise click.UsageError("Missing option '--temperature': '--top-p' and '--seed' have no effect without it.")
    from bakeout.export.evaluation.csv_table import write_csv
    from bakeout.export.evaluation.evaluate import evaluate
    from bakeout.export.recipes.evaluation import EvaluateOptions, Tasks
    from bakeout.models.files.writing import require_new

    if table is not None:
        require_new(table)
    chosen = (
        Tasks(
            names=_names(tasks),
            directory=task_directory,
            few_shot=few_shot,
            limit=limit,
            chat=chats,
            code=task_code,
        )
        if tasks
        else None
    )
    options = EvaluateOptions(
        rows=rows or "all",
        max_new_tokens=max_new_tokens or "auto",
        runtime=runtime,
        batch_size=batch_size,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        answers=answers,
        tasks=chosen,
    )
    template = chosen_template(chat_template, arguments, date)
    chosen_graders = graders(grades, [path.stem for path in data])
    chosen_columns = named_columns(columns, [path.stem for path in (*data, *texts)])
    with progress() as track:
        evaluation = evaluate(
            directories,
            data,
            texts=texts,
            base=base,
            columns=chosen_columns,
            grades=chosen_graders,
            options=options,
            chat_template=template,
            track=track,
        )
    if table is not None:
        write_csv(evaluation, table)
    if machine:
        emit_json(evaluation.as_json())
    else:
        print_evaluation(evaluation, is_limited=max_new_tokens is not None)


def _names(tasks: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise click.UsageError("--tasks names no task.")
    return names


def print_evaluation(evaluation: Evaluation, *, is_limited: bool = False) -> None:
    """A row for each data file: every model's accuracy, its change from the base with the interval, and refusals.

    Where answers were judged by another grader than exact match, or were cut off at a limit that somebody set, all four
    outcomes follow, and scores.
    """
    if evaluation.rows:
        _print_rows(evaluation.rows)
    if judged := [row for row in evaluation.rows if row.grade != "exact" or (is_limited and row.cut_off)]:
        emit_table(
            ["data", "model", "grader", "right", "wrong", "cut off", "refused", "score", "95 %", "to base's", "95 %"],
            [_judged_cells(row) for row in judged],
            title="Answers as they were judged, with 95 % intervals",
        )
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
        asked = {row.model: row.asked.removesuffix(" prompts") for row in rows if row.data == name}
        # Figures of the base model that a build has stored may be of more rows.
        same = len(set(asked.values())) == 1
        cells = [name, ", ".join(dict.fromkeys(asked.values()) if same else map(": ".join, asked.items()))]
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


def _judged_cells(row: Row) -> list[str]:
    known = {name: _share(*outcome) for name, outcome in row.outcomes.items()}
    outcomes = [known.get(name, "-") for name in ("right", "wrong", "cut off", "refused")]
    cells = [row.data, row.model, row.grade, *outcomes]
    score = row.score
    if score is None:
        return [*cells, *["-"] * 4]
    cells += [f"{score.name} {score.mean:.4g}", f"[{score.interval[0]:.4g}, {score.interval[1]:.4g}]"]
    if score.ratio is None or score.ratio_interval is None:
        return [*cells, "-", "-"]
    low, high = score.ratio_interval
    return [*cells, f"{score.ratio:.4g}", f"[{low:.4g}, {high:.4g}]"]


def _share(share: float, interval: Interval) -> str:
    return f"{share:.1%} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


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
