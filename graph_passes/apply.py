"""A plan applied to a graph: all its interventions at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bakeout.graph_passes.adapter_slots import declare_slots, plan_constants
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import CONVERTED_FROM, sound_graph
from bakeout.graph_passes.graph.opset import OLDEST_OPSET
from bakeout.graph_passes.key_space_detection.detection_pass import KeySpaceDetectionPass
from bakeout.graph_passes.neuron_adjust import NeuronAdjustPass
from bakeout.graph_passes.residual_edits import ResidualEditsPass
from bakeout.graph_passes.webgpu import WebGpuPass
from bakeout.graph_passes.weight_edits import WeightEditsPass
from bakeout.models.plan import (
    Intervention,
    KeySpaceDetection,
    NeuronAdjust,
    Plan,
    ResidualAddition,
    ResidualProjection,
)
from bakeout.models.plan.receipt import Receipt

# What onnx 1.23 writes by default is newer than what runtimes read; 10 has functions with overloads, and int4.
IR_VERSION = 10


@sound_graph()
def edit_weights(model: ir.Model, plan: Plan) -> list[Receipt]:
    """Make a plan's weight edits alone, and return their receipts.

    Edited weights that lie in a data file show as edited from then on; ``write_edited_tensors`` writes them to a copy
    of it. Raises as ``apply_plan``.
    """
    _require_fit(model, plan)
    weights = WeightEditsPass(plan.interventions, plan.model)
    if weights.changes:
        weights(model)
    return weights.receipts


@sound_graph()
def apply_plan(
    model: ir.Model,
    plan: Plan,
    *,
    inline: bool = False,
    early_exit: bool | None = None,
    monitor: bool = False,
    adapter_slots: bool = False,
    webgpu: bool = False,
    latch_layer: int | None = None,
    edited: Sequence[Receipt] | None = None,
) -> list[Receipt]:
    """Edit a decoder graph in place so that it carries a plan, and return the receipts in the plan's order.

    ``inline`` writes Neuron Adjust as standard operators instead of a model-local function, ``early_exit`` lets Key
    Space Detection skip what a refusal does not need (by default, where that costs answers nothing), ``monitor`` adds
    its outputs ``refused`` and ``margin``; ``webgpu`` keeps to what that computes, and needs ``inline`` and no early
    exit.
    ``adapter_slots`` declares the constants of the graph's edits as inputs with defaults (``adapter_slots``).
    ``latch_layer``: the number of the cache that carries a refusal on, for graphs that hand it to each other; by
    default it is chosen. ``edited``: the result of ``edit_weights``, if it was called before (and the graph
    quantised since).

    Raises ``PlanError`` where the plan was fitted on a model of another shape, and ``GraphError`` where the graph
    cannot be read or an edit does not match all that the plan names; the graph is then to be discarded.
    """
    own = tuple(model.graph)
    # Weights first, where they lie as in the plain graph.
    receipts = edit_weights(model, plan) if edited is None else list(edited)
    slots = sorted(plan_constants(plan, read_anatomy(model).dtype)) if adapter_slots else []
    for edit in _passes(plan, _Options(inline, early_exit, monitor, latch_layer)):
        edit(model)
        # At once: constants that happen to be equal are shared by later passes, inputs never.
        declare_slots(model, slots)
        receipts += edit.receipts
    _require_all_matched(plan, receipts)
    RemoveUnusedNodesPass()(model)
    if webgpu:
        WebGpuPass(own)(model)
    model.ir_version = IR_VERSION
    if CONVERTED_FROM in model.meta:
        told = {CONVERTED_FROM: model.meta[CONVERTED_FROM]}
        receipts = [replace(receipt, detail={**receipt.detail, **told}) for receipt in receipts]
    return sorted(receipts, key=lambda receipt: (receipt.intervention, receipt.layer, receipt.detail.get("role", "")))


def _require_fit(model: ir.Model, plan: Plan) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise GraphError(
            f"The graph is of opset {opset}; {OLDEST_OPSET} is the oldest that interventions can be baked into.",
            f"Export it with opset {OLDEST_OPSET} or later.",
        )
    anatomy = read_anatomy(model)
    plan.model.require_shape(
        widths=anatomy.widths, hidden=anatomy.hidden, experts=[router.experts for router in anatomy.routers]
    )


@dataclass(frozen=True)
class _Options:
    inline: bool
    early_exit: bool | None
    monitor: bool
    latch_layer: int | None


_Pass = NeuronAdjustPass | ResidualEditsPass | KeySpaceDetectionPass
# Interventions of one pass, each with its place in the plan.
_Placed = Sequence[tuple[int, Any]]


def _neuron_adjust(placed: _Placed, options: _Options) -> Iterator[_Pass]:
    for index, intervention in placed:
        yield NeuronAdjustPass(intervention, index, inline=options.inline)


def _residual_edits(placed: _Placed, options: _Options) -> Iterator[_Pass]:
    # All at once: those of one layer follow one another in the plan's order.
    yield ResidualEditsPass(placed)


def _key_space_detection(placed: _Placed, options: _Options) -> Iterator[_Pass]:
    for index, intervention in placed:
        yield KeySpaceDetectionPass(
            intervention,
            index,
            early_exit=options.early_exit,
            monitor=options.monitor,
            latch_layer=options.latch_layer,
        )


# The passes of the kinds that edit graphs, in the order in which they run: Key Space Detection, which splits the graph
# into branches, comes last.
_PASSES: Mapping[tuple[type[Intervention], ...], Callable[[_Placed, _Options], Iterator[_Pass]]] = {
    (NeuronAdjust,): _neuron_adjust,
    (ResidualAddition, ResidualProjection): _residual_edits,
    (KeySpaceDetection,): _key_space_detection,
}


def _passes(plan: Plan, options: _Options) -> Iterator[_Pass]:
    """The passes of the interventions that do not edit weights."""
    known = {kind for kinds in _PASSES for kind in kinds}
    for intervention in plan.interventions:
        if not intervention.edits_weights and type(intervention) not in known:
            raise GraphError(f"{intervention.title} acts on what a graph computes, and no pass is known for it.")
    for kinds, make in _PASSES.items():
        placed = [(index, entry) for index, entry in enumerate(plan.interventions) if type(entry) in kinds]
        if placed:
            yield from make(placed, options)


def _require_all_matched(plan: Plan, receipts: list[Receipt]) -> None:
    # A weight can lie in two places, with a receipt for each.
    places = {(each.intervention, each.layer, each.detail.get("role", each.tensor)) for each in receipts}
    edited = Counter((intervention, layer) for intervention, layer, _ in places)
    for index, intervention in enumerate(plan.interventions):
        owed = Counter(part.layer for part in intervention.parts)
        if missing := [layer for layer, edits in owed.items() if edited[index, layer] != edits]:
            raise GraphError(f"Intervention {index} ({intervention.kind}) did not match once in layers {missing}.")
