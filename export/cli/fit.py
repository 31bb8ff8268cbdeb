"""`bakeout fit`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress, show, show_errors_alone
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.placement import cache_options, kept_in, placement_options


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File of the new plan; it must not exist.")
@placement_options
@cache_options
@json_output
def fit(
    recipe: Path,
    output: Path,
    device: str | None,
    dtype: str | None,
    device_map: str | None,
    cache: Path | None,
    no_cache: bool,
    machine: bool,
) -> None:
    """Probe a model and fit a recipe's interventions to a plan.

    Started by torchrun or accelerate launch, several processes probe together; the first one writes the plan.
    """
    from bakeout.export.fitting.fit import fit
    from bakeout.export.recipes.recipe import load_recipe
    from bakeout.models.files.writing import require_new
    from bakeout.models.network.processes import joined
    from bakeout.models.plan.plan_file import save_plan
    from bakeout.models.progress import untracked

    require_new(output)
    with joined() as rank, progress() as track:
        if rank:
            show_errors_alone()
        placed = load_recipe(recipe).placed(device=device, dtype=dtype, device_map=device_map)
        plan = fit(placed, untracked if rank else track, cache=kept_in(cache, no_cache))
    if rank:
        return
    save_plan(plan, output)
    if machine:
        emit_json({"plan": str(output)})
    else:
        show(f"{output}: {output.stat().st_size:,} bytes. Next: bakeout bake MODEL {output} -o DIR")
