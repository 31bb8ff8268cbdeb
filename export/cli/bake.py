"""`bakeout bake`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bakeout.export.cli.artifact_lines import show_artifact
from bakeout.export.cli.console import emit_json, progress, show_lines
from bakeout.export.cli.option_fields import FieldsCommand
from bakeout.export.cli.options import PATH, json_output

if TYPE_CHECKING:
    from pydantic import BaseModel


def _fields() -> type[BaseModel]:
    from bakeout.export.recipes.bake_options import BakeOptions

    return BakeOptions


@click.command(cls=FieldsCommand, fields=_fields)
@click.argument("model")
@click.argument("plan", type=PATH)
@click.option("-o", "--output", type=PATH, help="Directory of the new artifact; it must not exist.")
@click.option("--canary/--no-canary", default=True, help="Run the plan's canary through the baked graph.")
@click.option(
    "--hide",
    type=PATH,
    metavar="SALT",
    help="Leave out what is forgotten: names become digests salted by this file (made where it is not there), figures "
    "of data go, and the refusal names nothing.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; show what would change, and the disk and memory needed.")
@json_output
def bake(
    model: str,
    plan: Path,
    output: Path | None,
    canary: bool,
    hide: Path | None,
    dry_run: bool,
    machine: bool,
    **chosen: Any,
) -> None:
    """Apply a plan to a checkpoint or an ONNX model.

    MODEL: a checkpoint's directory or hub id, or an ONNX directory or file from any exporter.
    """
    from bakeout.export.artifacts.salt import kept_salt, known_salt
    from bakeout.export.baking.bake import bake
    from bakeout.export.baking.dry_run import dry_run as dry_run_of
    from bakeout.export.baking.dry_run import lines
    from bakeout.export.baking.hiding import hide_plan
    from bakeout.export.recipes.bake_options import BakeOptions
    from bakeout.models.plan.plan_file import load_plan

    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    options = BakeOptions(**chosen)
    fitted = load_plan(plan)
    if dry_run:
        if hide is not None:
            # Nothing is written, and what is shown does not depend on the salt.
            fitted = hide_plan(model, fitted, known_salt(hide) if hide.exists() else b"")
        outlook = dry_run_of(model, fitted, options)
        if machine:
            emit_json(outlook.as_json())
        else:
            show_lines(lines(outlook))
        return
    assert output is not None
    with progress() as track, nullcontext() if hide is None else kept_salt(hide) as salt:
        if salt is not None:
            fitted = hide_plan(model, fitted, salt)
        baked = bake(model, fitted, output, options, canary=canary, track=track)
    show_artifact(baked.directory, baked.receipts, machine=machine)
