"""`bakeout fit`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress, show
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
    """Probe a model and fit a recipe's interventions to a plan."""
    from bakeout.export.fitting.fit import fit
    from bakeout.export.recipes.recipe import load_recipe
    from bakeout.models.files.writing import require_new
    from bakeout.models.plan.plan_file import save_plan

    require_new(output)
    with progress() as track:
        placed = load_recipe(recipe).placed(device=device, dtype=dtype, device_map=device_map)
        plan = fit(placed, track, cache=kept_in(cache, no_cache))
    save_plan(plan, output)
    if machine:
        emit_json({"plan": str(output)})
    else:
        show(f"{output}: {output.stat().st_size:,} bytes. Next: bakeout bake MODEL {output} -o DIR")
