"""`bakeout export-adapter`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, show
from bakeout.export.cli.options import PATH, json_output


@click.command(name="export-adapter")
@click.argument("plan", type=PATH)
@click.option("--to", type=click.Choice(["peft", "onnx"]), default="peft", show_default=True, help="Whose adapter.")
@click.option("--artifact", type=PATH, help="With `--to onnx`: what `bake --adapter-slots` wrote.")
@click.option("--base", help="With `--to peft`: the name that the adapter gives its base model.")
@click.option("--policy", is_flag=True, help="A directory with plan and manifest: to be signed, recorded, certified.")
@click.option("--hide", type=PATH, help="Leave out what is forgotten, as `bake --hide` with this file of a salt.")
@click.option("-o", "--output", type=PATH, required=True, help="The new directory (peft, policy) or file (onnx).")
@json_output
def export_adapter(
    plan: Path,
    to: str,
    artifact: Path | None,
    base: str | None,
    policy: bool,
    hide: Path | None,
    output: Path,
    machine: bool,
) -> None:
    """Write a plan as an adapter: for PEFT its low-rank updates, for ONNX Runtime the constants of its graph edits."""
    from bakeout.export.artifacts.salt import kept_salt
    from bakeout.models.files.writing import require_new
    from bakeout.models.plan.plan_file import load_plan

    require_new(output)
    loaded = load_plan(plan)
    if to == "peft" and artifact is not None:
        raise click.UsageError("'--artifact' belongs to '--to onnx'.")
    if to == "onnx" and (artifact is None or base is not None):
        raise click.UsageError("'--to onnx' needs '--artifact', and takes no '--base'.")
    if hide is not None:
        from bakeout.export.baking.hiding import hide_plan

        with kept_salt(hide) as salt:
            loaded = hide_plan(artifact, loaded, salt)
    if policy:
        from bakeout.export.adapters.policy import export_policy

        tensors = export_policy(loaded, output, artifact=artifact, base=base)
        told, line = {"adapter": str(output), "tensors": tensors}, f"{output}: a policy of {tensors} tensors"
    elif artifact is None:
        from bakeout.export.adapters.peft_adapter import export_peft_adapter

        ranks = export_peft_adapter(loaded, output, base=base)
        told = {"adapter": str(output), "ranks": ranks}
        line = f"{output}: {len(ranks)} modules, of rank {min(ranks.values())} to {max(ranks.values())}"
    else:
        from bakeout.export.adapters.onnx_adapter import export_onnx_adapter

        constants = export_onnx_adapter(loaded, artifact, output)
        told = {"adapter": str(output), "constants": {name: list(shape) for name, shape in constants.items()}}
        line = f"{output}: {len(constants)} constants, {output.stat().st_size:,} bytes"
    if machine:
        emit_json(told)
    else:
        show(line)
