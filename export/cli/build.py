"""`bakeout build`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.artifact_lines import show_artifact
from bakeout.export.cli.console import progress
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.placement import placement_options


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the new artifact; it must not exist.")
@placement_options
@json_output
def build(
    recipe: Path, output: Path, device: str | None, dtype: str | None, device_map: str | None, machine: bool
) -> None:
    """Probe, fit, export, bake and verify: all steps of a recipe."""
    from bakeout.export.pipeline.build import build

    with progress() as track:
        built = build(recipe, output, placed={"device": device, "dtype": dtype, "device_map": device_map}, track=track)
    show_artifact(built.directory, built.receipts, machine=machine)
