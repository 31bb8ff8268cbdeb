"""`bakeout combine`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress, show_lines
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.plan_lines import show_plan


@click.command()
@click.argument("plans", type=PATH, nargs=-1, required=True, metavar="PLAN...")
@click.option("--base", required=True, help="The base model of all of them: a checkpoint's directory or hub id.")
@click.option("-o", "--output", type=PATH, required=True, help="File of the new plan; it must not exist.")
@json_output
def combine(plans: tuple[Path, ...], base: str, output: Path, machine: bool) -> None:
    """Put plans of one model together, in their order.

    Nothing is fitted again: what the others do to each intervention is measured, and told.
    """
    from bakeout.export.importing.combine import combine
    from bakeout.models.files.writing import require_new
    from bakeout.models.plan.plan_file import load_plan, save_plan

    require_new(output)
    loaded = [load_plan(path) for path in plans]
    with progress() as track:
        combined = combine(loaded, base, track=track)
    save_plan(combined.plan, output)
    if machine:
        emit_json(
            {"plan": str(output), "interactions": [interaction.as_json() for interaction in combined.interactions]}
        )
        return
    show_lines(combined.lines())
    show_plan(output, combined.plan, machine=False)
