"""`bakeout bake`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from bakeout.export.cli.artifact_lines import show_artifact
from bakeout.export.cli.console import emit_json, progress
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("model")
@click.argument("plan", type=PATH)
@click.option("-o", "--output", type=PATH, help="Directory of the new artifact; it must not exist.")
@click.option(
    "--to",
    type=click.Choice(["onnx", "safetensors"]),
    default="onnx",
    show_default=True,
    help="An ONNX graph, or a checkpoint (for plans of weight edits alone).",
)
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Precision of an export."
)
@click.option("--quantize", type=click.Choice(["int8"]), help="Quantise a float32 graph's weights dynamically.")
@click.option("--inline", is_flag=True, help="Write Neuron Adjust as standard operators, without a local function.")
@click.option(
    "--early-exit/--no-early-exit", default=True, help="Skip the layers that a refusal does not need, in an `If`."
)
@click.option("--monitor", is_flag=True, help="Add two outputs: `refused` and `margin`.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="A runtime that the artifact must serve, repeatable: onnxruntime, optimum, genai, node, web, transformers.js, "
    "openvino, reference.",
)
@click.option("--canary/--no-canary", default=True, help="Run the plan's canary through the baked graph.")
@click.option("--dry-run", is_flag=True, help="Write nothing; show what would change, and the disk and memory needed.")
@json_output
def bake(
    model: str,
    plan: Path,
    output: Path | None,
    to: Literal["onnx", "safetensors"],
    dtype: Literal["fp32", "fp16"],
    quantize: Literal["int8"] | None,
    inline: bool,
    early_exit: bool,
    monitor: bool,
    runtimes: tuple[str, ...],
    canary: bool,
    dry_run: bool,
    machine: bool,
) -> None:
    """Apply a plan to a checkpoint or an ONNX model.

    MODEL: a checkpoint's directory or hub id, or an ONNX directory or file from any exporter.
    """
    from bakeout.export.baking.bake import BakeOptions, bake
    from bakeout.export.baking.dry_run import dry_run as dry_run_of
    from bakeout.export.baking.dry_run import lines
    from bakeout.export.baking.runtimes import runtime_names
    from bakeout.models.plan.plan_file import load_plan

    options = BakeOptions(to, dtype, inline, early_exit, monitor, canary, runtime_names(runtimes), quantize)
    if dry_run:
        outlook = dry_run_of(model, load_plan(plan), options)
        if machine:
            emit_json(outlook.as_json())
        else:
            click.echo("\n".join(lines(outlook)))
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    with progress() as track:
        baked = bake(model, load_plan(plan), output, options, track=track)
    show_artifact(baked.directory, baked.receipts, machine=machine)
