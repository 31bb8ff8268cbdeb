"""``--runtime webgpu``: every inserted node has a kernel in ONNX Runtime's WebGPU provider, none branches, and none
computes in 64-bit integers; and the graph answers as the one with all of that.

The kernels are those of ``graph_passes/webgpu_kernels.json``, after the provider's registrations
(onnxruntime/core/providers/webgpu) without its option for 64-bit integers.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph
from bakeout.models.plan import Coin, Plan, Positions

from tests.baked_parity import key_space_detection, model_of, neuron_adjust, plan_of
from tests.fitted_regions import SHAPES
from tests.graph_passes.inserted_nodes import InsertedNode, inserted_nodes
from tests.tiny_models import random_prompts

TABLE = json.loads(files("bakeout.graph_passes").joinpath("webgpu_kernels.json").read_text())["kernels"]
PROMPTS = random_prompts(12)
# Of optimum's graphs (18) to the genai builder's (22).
OPSETS = range(18, 23)
# What operators take from beside the device: shapes, axes, bounds.
HOST_INPUTS = {
    "Expand": {1}, "Reshape": {1}, "Squeeze": {1}, "Unsqueeze": {1}, "Slice": {1, 2, 3, 4}, "CumSum": {1},
    "ReduceMax": {1}, "ReduceMin": {1}, "ReduceSum": {1}, "Range": {0, 1, 2},
}  # fmt: skip
# What moves shapes, there too.
MOVES_SHAPES = {"Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape"}
ARITHMETIC = {
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Abs", "Where", "CumSum", "Range", "Equal", "Less", "LessOrEqual",
    "Greater", "GreaterOrEqual", "ReduceMax", "ReduceMin", "ReduceSum",
}  # fmt: skip
WIDE = "tensor(int64)"


def plan(checkpoint: Path, positions: Positions, layers: tuple[int, ...], region: str, coin: Coin) -> Plan:
    model = model_of(checkpoint)
    adjust = neuron_adjust(model, coin, PROMPTS)
    start = PROMPTS[0][1:3] if positions == "mean" else ()
    detection = key_space_detection(model, layers, positions, PROMPTS, [adjust], region, query_start=start)
    return plan_of(model, [adjust, detection], PROMPTS)


CASES = [
    ("query", (1,), "cube", "threshold"),
    ("query", (3,), "rotated_cube", "expected"),
    ("mean", (0, 2), "linear", "threshold"),
    ("step", (0, 2), "cube", "threshold"),
    ("every", (1,), "cube", "expected"),
    *(("every", (2,), region, "threshold") for region in SHAPES if region != "cube"),
]


def computed(node: InsertedNode) -> list[str]:
    """The types of what a node computes with and of what it gives, shapes and axes left out."""
    host = HOST_INPUTS.get(node.operator, set()) - ({0, 1, 2} if node.operator == "Range" else set())
    return [kind for index, kind in enumerate(node.types) if index not in host or index >= node.inputs]


def has_kernel(node: InsertedNode) -> bool:
    schema = onnx.defs.get_schema(node.operator, node.opset, node.domain)
    if node.operator in MOVES_SHAPES and node.types[0] == WIDE:
        return True
    formal = [(index, schema.inputs[min(index, len(schema.inputs) - 1)]) for index in range(node.inputs)]
    bound = [
        (parameter, kind)
        for (index, parameter), kind in zip(formal, node.types, strict=False)
        if kind and index not in HOST_INPUTS.get(node.operator, ())
    ]
    for first, last, constraints in TABLE.get(f"{node.domain}::{node.operator}", []):
        if not (first == schema.since_version or (last is not None and first <= schema.since_version <= last)):
            continue
        # A cast between the widths stands at the border of the device.
        if node.operator == "Cast" and WIDE in node.types:
            return set(node.types) in ({WIDE, "tensor(int32)"}, {WIDE})
        if all(kind in constraints.get(parameter.type_str, [kind]) for parameter, kind in bound):
            return True
    return False


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_every_inserted_node_has_a_kernel_and_the_answers_are_the_same(
    case: tuple[Positions, tuple[int, ...], str, Coin], llama_checkpoint: Path, llama_onnx: Path
) -> None:
    own = plan(llama_checkpoint, *case)
    path = llama_onnx / "model.onnx"
    before = ir.to_proto(load_graph(path))
    graphs = {}
    for webgpu in (False, True):
        model = load_graph(path)
        apply_plan(model, own, inline=True, early_exit=False, webgpu=webgpu)
        graphs[webgpu] = model
    inserted = inserted_nodes(before, ir.to_proto(graphs[True]))
    assert not {node.operator for node in inserted} & {"If", "Loop", "Scan"}
    assert [node for node in sorted(inserted) if node.operator in ARITHMETIC and WIDE in computed(node)] == []
    assert [
        (opset, node) for opset in OPSETS for node in sorted(inserted) if not has_kernel(node._replace(opset=opset))
    ] == []
    wide, narrow = (Runner(llama_onnx, threads=1, graph=graph_bytes(graphs[webgpu])) for webgpu in (False, True))
    expected = wide.generate_with_logits(PROMPTS, 8)
    for (tokens, logits), (own_tokens, own_logits) in zip(
        expected, narrow.generate_with_logits(PROMPTS, 8), strict=True
    ):
        assert tokens == own_tokens
        assert np.array_equal(logits, own_logits)


def test_random_numbers_are_refused(llama_checkpoint: Path, llama_onnx: Path) -> None:
    model = model_of(llama_checkpoint)
    own = plan_of(model, [neuron_adjust(model, "stochastic", PROMPTS)], PROMPTS)
    with pytest.raises(GraphError, match="draws no random numbers"):
        apply_plan(load_graph(llama_onnx / "model.onnx"), own, inline=True, early_exit=False, webgpu=True)


@pytest.mark.parametrize(
    "node",
    [
        InsertedNode("", "Or", 18, ("tensor(bool)",) * 3, 2),
        InsertedNode("", "Max", 18, ("tensor(int32)",) * 3, 2),
        InsertedNode("", "Add", 18, (WIDE,) * 3, 2),
        InsertedNode("", "GatherElements", 18, (WIDE, "tensor(int32)", WIDE), 2),
    ],
)
def test_a_hole_would_be_seen(node: InsertedNode) -> None:
    assert not has_kernel(node)


def test_every_coin_but_one_can_be_baked() -> None:
    assert {coin for *_, coin in CASES} == set(get_args(Coin)) - {"stochastic"}
