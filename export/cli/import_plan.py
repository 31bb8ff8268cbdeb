"""`bakeout import`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import progress
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.plan_lines import show_plan


@click.command(name="import")
@click.argument("source", type=PATH)
@click.option("--base", required=True, help="The base model: a checkpoint's directory or hub id.")
@click.option("-o", "--output", type=PATH, required=True, help="File of the new plan; it must not exist.")
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="How many times the edit; negative: its reverse."
)
@click.option(
    "--energy", type=float, help="Of a checkpoint: the share of each difference that its rank holds. [0.9999]"
)
@click.option("--exact", is_flag=True, help="Of a checkpoint: the whole differences, so that it is baked bit for bit.")
@click.option(
    "--project", is_flag=True, help="Project the directions out of the residual stream, instead of adding them."
)
@click.option("--fold", is_flag=True, help="With --project: as changes of the weights that write, where that is exact.")
@click.option("--keep-norm", is_flag=True, help="Of a control vector: keep the norm of the residual stream.")
@click.option(
    "--layer", "layers", type=int, multiple=True, help="Of one direction: the blocks behind which it acts. Repeatable."
)
@json_output
def import_plan(
    source: Path,
    base: str,
    output: Path,
    scale: float,
    energy: float | None,
    exact: bool,
    project: bool,
    fold: bool,
    keep_norm: bool,
    layers: tuple[int, ...],
    machine: bool,
) -> None:
    """Make a plan of what another tool wrote.

    SOURCE: a PEFT LoRA adapter, an edited checkpoint of the base model, a control vector (GGUF or safetensors) or, with
    `--project`, a direction.
    """
    from bakeout.export.importing.import_plan import import_plan as import_source
    from bakeout.models.files.writing import require_new
    from bakeout.models.plan.plan_file import save_plan

    require_new(output)
    with progress() as track:
        plan = import_source(
            source,
            base,
            scale=scale,
            energy=energy,
            exact=exact,
            project=project,
            fold=fold,
            keep_norm=keep_norm,
            layers=layers or None,
            track=track,
        )
    save_plan(plan, output)
    show_plan(output, plan, machine=machine)
