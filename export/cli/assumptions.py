"""`bakeout assumptions`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.console import emit_json, progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", type=_PATH)
@click.option("--base", required=True, help="The base model: its checkpoint's directory, or a hub id.")
@click.option("--forget", type=_PATH, multiple=True, required=True, help="JSONL of what is forgotten; repeatable.")
@click.option("--retain", type=_PATH, multiple=True, required=True, help="JSONL of what is kept; repeatable.")
@click.option(
    "--length",
    "lengths",
    type=click.IntRange(1),
    multiple=True,
    help="Tokens of conversation before a query, repeatable; by default up to most of the model's context.",
)
@click.option("--prompts", type=click.IntRange(2), default=100, show_default=True, help="Rows of each file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the conversations.")
@click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
def assumptions(
    path: Path,
    base: str,
    forget: tuple[Path, ...],
    retain: tuple[Path, ...],
    lengths: tuple[int, ...],
    prompts: int,
    seed: int,
    machine: bool,
) -> None:
    """Check what a plan's methods take for granted, on your model and data.

    PATH: a plan or an artifact. Of Neuron Adjust: how far every selected neuron's pre-activations are from Gaussian,
    and how much the forget set's and the retain set's overlap. Of both methods: how distributions and margins drift
    when the same query stands behind ever longer conversations about everything. Warns where a method stands on sand.
    """
    from bakeout.export.verification.check_assumptions import check_assumptions, print_checked

    with progress() as track:
        checked = check_assumptions(
            path, base, forget, retain, lengths=lengths, prompts=prompts, seed=seed, track=track
        )
    if machine:
        emit_json({"interventions": [one.as_json() for one in checked]})
    else:
        print_checked(checked)
