"""`bakeout tune`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.console import emit_json, progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The tuned recipe's file; it must not exist.")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Candidates of each search.")
@click.option(
    "--prompts", type=click.IntRange(1), default=200, show_default=True, help="Rows of each name to measure one on."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search.")
@click.option("--directory", type=_PATH, help="Where trials are kept and gone on from; by default beside the output.")
@click.option("--figures", type=_PATH, help="Write what a report draws of the choices to this file.")
@click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
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
    """Fill in what a recipe leaves `auto`, so that a build never searches.

    Searched: Neuron Adjust's `ratio: auto` (with selection, tokens and coin where they are not set), LUNAR's
    `coefficient: auto` and UNLEARN's `scale: auto`. Chosen is, of the candidates that keep 95 % of every accuracy to
    retain, the one that forgets most. Also filled in: the layers, cubes, floor and epsilon of Key Space Detection.
    All trials are kept as tables; a search that was interrupted goes on.
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
