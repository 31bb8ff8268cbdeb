"""`bakeout build`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.artifact_lines import show_artifact
from bakeout.export.cli.console import progress
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.placement import cache_options, kept_in, placement_options


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the new artifact; it must not exist.")
@placement_options
@cache_options
@json_output
def build(
    recipe: Path,
    output: Path,
    device: str | None,
    dtype: str | None,
    device_map: str | None,
    cache: Path | None,
    no_cache: bool,
    machine: bool,
) -> None:
    """Probe, fit, export, bake and verify: all steps of a recipe."""
    from bakeout.export.pipeline.build import build

    placed = {"device": device, "dtype": dtype, "device_map": device_map}
    with progress() as track:
        built = build(recipe, output, placed=placed, cache=kept_in(cache, no_cache), track=track)
    show_artifact(built.directory, built.receipts, machine=machine)
