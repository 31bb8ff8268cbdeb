"""Adapter slots: a plan's constants as inputs of the graph with defaults, which ONNX Runtime's adapters override.

A graph with slots runs without them, on the plan that was baked. Another plan of the same structure is a file of a few
kilobytes (``.onnx_adapter``) with the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.key_space_detection.detection_pass import detection_constants
from bakeout.graph_passes.neuron_adjust import adjustment_constants
from bakeout.graph_passes.residual_edits import direction_constants
from bakeout.models.plan import KeySpaceDetection, NeuronAdjust, Plan, PlanError, ResidualAddition, ResidualProjection

Constants = Mapping[str, NDArray[Any]]

_CONSTANTS: Mapping[type[Any], Any] = {
    NeuronAdjust: adjustment_constants,
    ResidualAddition: direction_constants,
    ResidualProjection: direction_constants,
    KeySpaceDetection: detection_constants,
}


@dataclass(frozen=True)
class Slot:
    """An input that an adapter can override: its type, and its shape, None where any size will do."""

    dtype: ir.DataType
    shape: tuple[int | None, ...]


def plan_constants(plan: Plan, dtype: ir.DataType) -> dict[str, NDArray[Any]]:
    """The constants of a plan's graph edits, by the names that they have in graphs whose activations are ``dtype``.

    Raises ``PlanError`` for a plan that edits weights alone.
    """
    constants: dict[str, NDArray[Any]] = {}
    for index, intervention in enumerate(plan.interventions):
        if (of_kind := _CONSTANTS.get(type(intervention))) is not None:
            constants |= of_kind(intervention, index, dtype)
    if not constants:
        raise PlanError(
            "The plan edits weights alone, and its constants are in them.", "Export a PEFT adapter, or bake it."
        )
    return constants


def declare_slots(model: ir.Model, names: Sequence[str]) -> None:
    """Make those of the initialisers ``names`` that a graph has inputs, their values the defaults.

    The number of neurons of a Neuron Adjust is left open.
    """
    for name in names:
        value = model.graph.initializers.get(name)
        if value is None or value in model.graph.inputs:
            continue
        if ".neuron_adjust_" in name:
            value.shape = ir.Shape([f"{name.rpartition('.')[0]}.count"])
        model.graph.inputs.append(value)


def slots_in(model: ir.Model) -> dict[str, Slot]:
    """The slots of a graph by their names."""
    slots = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if name in model.graph.initializers and name.startswith("bakeout."):
            assert value.dtype is not None and value.shape is not None, "inputs of a graph have types"
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            slots[name] = Slot(value.dtype, shape)
    return slots


def fill_slots(slots: Mapping[str, Slot], plan: Plan) -> dict[str, NDArray[Any]]:
    """A plan's constants for the slots of a graph.

    Where a check has fewer regions than the graph, the last one is repeated, which decides nothing. Raises
    ``GraphError`` where the slots are of another plan's structure.
    """
    half = {slot.dtype for slot in slots.values()} & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    constants = plan_constants(plan, next(iter(half), ir.DataType.FLOAT))
    if odd := sorted(slots.keys() ^ constants.keys()):
        side = "plan" if odd[0] in slots else "graph"
        raise GraphError(f"The {side} has no constant {odd[0]}.", "Export a plan like the one that was baked.")
    return {name: _filled(name, slots[name], constants[name]) for name in sorted(slots)}


def _filled(name: str, slot: Slot, values: NDArray[Any]) -> NDArray[Any]:
    missing = (
        [0 if size is None else size - own for size, own in zip(slot.shape, values.shape, strict=True)]
        if len(slot.shape) == values.ndim
        else None
    )
    if missing is not None and missing and missing[0] > 0 and ".key_space_detection." in name and not any(missing[1:]):
        values = np.concatenate([values, np.repeat(values[-1:], missing[0], axis=0)])
    elif missing is None or any(missing):
        raise GraphError(
            f"{name} has the shape {values.shape}, and the graph's slot {slot.shape}.",
            "Export a plan with as many layers, and no more regions than the one that was baked.",
        )
    return np.ascontiguousarray(values.astype(slot.dtype.numpy()))
