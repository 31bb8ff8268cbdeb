"""`bakeout assumptions`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.cli.console import emit_json, emit_table, progress, show
from bakeout.export.cli.options import PATH, json_output
from bakeout.export.cli.placement import placement_options

if TYPE_CHECKING:
    from bakeout.export.verification.check_assumptions import Checked
    from bakeout.models.plan import ModelIdentity
    from bakeout.models.reference.assumptions import DriftRow, NeuronShape

# How many neurons a table shows.
_WORST = 10


@click.command()
@click.argument("path", type=PATH)
@click.option("--base", required=True, help="The base model: its checkpoint's directory, or a hub id.")
@click.option("--forget", type=PATH, multiple=True, required=True, help="JSONL to be forgotten; repeatable.")
@click.option("--retain", type=PATH, multiple=True, required=True, help="JSONL to be retained; repeatable.")
@click.option(
    "--length",
    "lengths",
    type=click.IntRange(1),
    multiple=True,
    help="Tokens of conversation before a query, repeatable; by default up to most of the model's context.",
)
@click.option("--prompts", type=click.IntRange(2), default=100, show_default=True, help="Rows of each file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the conversations.")
@placement_options
@json_output
def assumptions(
    path: Path,
    base: str,
    forget: tuple[Path, ...],
    retain: tuple[Path, ...],
    lengths: tuple[int, ...],
    prompts: int,
    seed: int,
    device: str | None,
    dtype: str | None,
    device_map: str | None,
    machine: bool,
) -> None:
    """Check the assumptions of a plan's methods on your model and data.

    PATH: a plan or an artifact. For Neuron Adjust: how far the pre-activations of every selected neuron are from
    Gaussian, and how much those of the forget set and the retain set overlap. For both methods: how distributions and
    margins drift when the same query comes after longer and longer conversations about other subjects. Warns where an
    assumption does not hold.
    """
    from bakeout.export.verification.check_assumptions import check_assumptions
    from bakeout.models.checkpoint.placement import REFERENCE

    placement = REFERENCE.changed(device=device, dtype=dtype, device_map=device_map)
    with progress() as track:
        checked = check_assumptions(
            path, base, forget, retain, lengths=lengths, prompts=prompts, seed=seed, placement=placement, track=track
        )
    if machine:
        emit_json({"interventions": [intervention.as_json() for intervention in checked]})
    else:
        _print(checked)


def _print(checked: Sequence[Checked]) -> None:
    """Tables and warnings for each intervention."""
    for intervention in checked:
        name = f"{intervention.index} {intervention.kind}"
        if intervention.shapes is not None:
            neurons = intervention.shapes.neurons
            worst = sorted(neurons, key=lambda neuron: -max(neuron.forget_gap, neuron.retain_gap))[:_WORST]
            emit_table(
                ["neuron", "gap, forget", "gap, retain", "overlap", "shifted, forget", "shifted, retain"],
                [_neuron_cells(neuron, intervention.model) for neuron in worst],
                title=f"{name}: of {len(neurons)} neurons, those farthest from Gaussian",
            )
        emit_table(
            ["queries", "tokens", "margin / alpha", "refused", "shift of the means"],
            [_drift_cells(row) for row in intervention.drift.rows],
            title=f"{name}: the same queries after longer and longer conversations",
        )
        for warning in intervention.warnings:
            show(f"WARNING: {warning}")
        if not intervention.warnings:
            show("No warnings.")


def _neuron_cells(neuron: NeuronShape, model: ModelIdentity) -> list[str]:
    figures = (neuron.forget_gap, neuron.retain_gap, neuron.overlap)
    shares = (neuron.shifted_forget, neuron.shifted_retain)
    name = f"{model.name_of(neuron.layer)}, {neuron.neuron}"
    return [name, *(f"{figure:.2f}" for figure in figures), *(f"{share:.0%}" for share in shares)]


def _drift_cells(row: DriftRow) -> list[str]:
    margin = "" if row.margin is None else f"{row.margin:.2f}"
    refused = "" if row.refused is None else f"{row.refused:.1%}"
    shift = "" if row.shift is None else f"{row.shift:.2f}"
    return [row.name, f"{row.first} to {row.last - 1}", margin, refused, shift]
