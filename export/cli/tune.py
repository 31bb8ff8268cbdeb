"""`bakeout tune`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File of the tuned recipe; it must not exist.")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Candidates of each search.")
@click.option(
    "--prompts", type=click.IntRange(1), default=200, show_default=True, help="Rows of each name to measure with."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search.")
@click.option("--directory", type=PATH, help="Directory of the trials, to resume from; by default beside the output.")
@click.option("--figures", type=PATH, help="Write the figures of a report to this file; it must not exist.")
@json_output
def tune(
    recipe: Path,
    output: Path,
    trials: int,
    prompts: int,
    seed: int,
    directory: Path | None,
    figures: Path | None,
    machine: bool,
) -> None:
    """Replace every `auto` of a recipe by a value, so that a build never searches.

    Searched are Neuron Adjust's `ratio: auto` (with selection, tokens and coin where the recipe does not set them),
    LUNAR's `coefficient: auto` and UNLEARN's `scale: auto`. Of the candidates that keep 95 % of every retained
    accuracy, the one that forgets most is chosen. The layers, cubes, floor and epsilon of Key Space Detection are
    filled in too. All trials are kept as tables, and an interrupted search resumes.
    """
    from bakeout.export.tuning.tune import tune

    with progress() as track:
        tuned = tune(
            recipe,
            output,
            trials=trials,
            prompts=prompts,
            seed=seed,
            directory=directory,
            figures=figures,
            track=track,
        )
    if machine:
        emit_json(tuned.as_json())
    else:
        click.echo(f"{output}: choices filled in: {len(tuned.filled)}; the trials are in {tuned.directory}")
        click.echo(f"Next: bakeout build {output} -o DIR")
