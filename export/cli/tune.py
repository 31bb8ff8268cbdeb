"""`bakeout tune`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress, show
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.placement import cache_options, kept_in, placement_options


class _Tune(click.Command):
    """The command's help names the options that `tune` fills in for every installed method."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from bakeout.models.methods.registry import methods

        searched, chosen = [], []
        for method in methods().values():
            if method.search is not None:
                others = [name for name in method.search.axes if name != method.search.strength]
                with_them = f", with {', '.join(others)} where the recipe does not set them" if others else ""
                searched.append((method.name, f"{method.search.strength}: auto{with_them}"))
            if method.chooses:
                chosen.append((method.name, ", ".join(method.chooses)))
        with formatter.section("Searched"):
            formatter.write_dl(searched)
        with formatter.section("Chosen while the method is fitted"):
            formatter.write_dl(chosen)


@click.command(cls=_Tune)
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File of the tuned recipe; it must not exist.")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Candidates of each search.")
@click.option(
    "--prompts", type=click.IntRange(1), default=200, show_default=True, help="Rows of each name to measure with."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search.")
@click.option("--directory", type=PATH, help="Directory of the trials, to resume from; by default beside the output.")
@click.option("--figures", type=PATH, help="Write the figures of a report to this file; it must not exist.")
@placement_options
@cache_options
@json_output
def tune(
    recipe: Path,
    output: Path,
    trials: int,
    prompts: int,
    seed: int,
    directory: Path | None,
    figures: Path | None,
    device: str | None,
    dtype: str | None,
    device_map: str | None,
    cache: Path | None,
    no_cache: bool,
    machine: bool,
) -> None:
    """Replace every `auto` of a recipe by a value, so that a build never searches.

    A method's strength is searched: of the candidates that keep 95 % of every retained accuracy, the one that forgets
    most is chosen. What a method chooses while it is fitted is filled in too. All trials are kept as tables, and an
    interrupted search resumes.
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
            placed={"device": device, "dtype": dtype, "device_map": device_map},
            cache=kept_in(cache, no_cache),
            track=track,
        )
    if machine:
        emit_json(tuned.as_json())
    else:
        show(f"{output}: choices filled in: {len(tuned.filled)}; the trials are in {tuned.directory}")
        show(f"Next: bakeout build {output} -o DIR")
