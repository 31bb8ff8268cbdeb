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
@click.option("--base", type=_PATH, help="The base model: its checkpoint's directory, or an ONNX one.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--csv", "table", type=_PATH, help="Write all figures to this file too.")
@click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
def evaluate(
    directories: tuple[Path, ...],
    data: tuple[Path, ...],
    texts: tuple[Path, ...],
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
    """
    if not data and not texts:
        raise click.UsageError("Missing option '--data' or '--text'.")
    from bakeout.export.evaluate import evaluate
    from bakeout.export.evaluation_tables import print_evaluation, write_csv

    with progress() as track:
        evaluation = evaluate(directories, data, texts=texts, base=base, batch_size=batch_size, track=track)
    if table is not None:
        write_csv(evaluation, table)
    if machine:
        rows = [row.as_json() for row in evaluation.rows]
        emit_json({"rows": rows, "texts": [row.as_json() for row in evaluation.texts]})
    else:
        print_evaluation(evaluation)
