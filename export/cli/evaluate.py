"""`bakeout evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.console import emit_json, progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("directories", type=_PATH, nargs=-1, required=True, metavar="DIR...")
@click.option("--data", type=_PATH, multiple=True, help="JSONL with prompts and responses; repeatable.")
@click.option(
    "--text", "texts", type=_PATH, multiple=True, help="JSONL to measure perplexity and divergence on; repeatable."
)
@click.option("--tasks", help="Tasks of lm-evaluation-harness, as in gsm8k,mmlu.")
@click.option("--task-directory", type=_PATH, help="Where more tasks' YAML files lie.")
@click.option("--few-shot", type=click.IntRange(0), help="Examples before each question; else as the task says.")
@click.option("--limit", type=click.IntRange(1), help="Only so many questions of each task.")
@click.option("--chat-template", is_flag=True, help="Put tasks' prompts through the tokenizer's chat template.")
@click.option("--base", type=_PATH, help="The base model: its checkpoint's directory, or an ONNX one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--csv", "table", type=_PATH, help="Write all figures to this file too.")
@click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
def evaluate(
    directories: tuple[Path, ...],
    data: tuple[Path, ...],
    texts: tuple[Path, ...],
    tasks: str | None,
    task_directory: Path | None,
    few_shot: int | None,
    limit: int | None,
    chat_template: bool,
    base: Path | None,
    batch_size: int,
    table: Path | None,
    machine: bool,
) -> None:
    """Measure artifacts beside the base model.

    --data: accuracy, which is exact match, surrounding whitespace aside, and refusals. The base model's figures are
    measured with --base, and else those that were stored when the artifact was built on the same data. Changes come
    with Newcombe's 95 % interval: of pairs with --base, else of two samples.

    --text: perplexity of responses or plain text, and with --base the divergence of the first token from the base's.

    --tasks: what lm-evaluation-harness measures (pip install "bakeout[harness]"). A refusal that is said while
    generating does not show in its log-likelihood tasks, such as mmlu: there nothing is generated.
    """
    if not data and not texts and not tasks:
        raise click.UsageError("Missing option '--data', '--text' or '--tasks'.")
    if not tasks and (task_directory or few_shot is not None or limit or chat_template):
        raise click.UsageError("Missing option '--tasks': the others about tasks do nothing without it.")
    from bakeout.export.evaluation.evaluate import evaluate
    from bakeout.export.evaluation.evaluation_tables import print_evaluation, require_table, write_csv
    from bakeout.export.evaluation.harness import Tasks

    if table is not None:
        require_table(table)
    wanted = Tasks(_names(tasks), task_directory, few_shot, limit, chat_template) if tasks else None
    with progress() as track:
        evaluation = evaluate(
            directories, data, texts=texts, tasks=wanted, base=base, batch_size=batch_size, track=track
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
