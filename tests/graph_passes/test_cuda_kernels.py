"""Every node that the passes insert has a CUDA kernel in ONNX Runtime: nothing falls back to the CPU unseen.

The kernels are those of ``graph_passes/cuda_kernels.json``; ``cuda_kernel_table.py`` says how it is made.
"""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.key_space_detection import margins
from bakeout.models.plan import (
    Canary,
    Coin,
    Intervention,
    LayerDirection,
    ModelIdentity,
    Plan,
    Positions,
    ResidualAddition,
    ResidualProjection,
)

from tests.fitted_regions import SHAPES, fitted_regions
from tests.graph_passes.inserted_nodes import InsertedNode, inserted_nodes
from tests.plan_examples import key_space_detection, neuron_adjust
from tests.tiny_models import tiny_checkpoint

TABLE = json.loads(files("bakeout.graph_passes").joinpath("cuda_kernels.json").read_text())
# Of optimum's graphs (18) to the genai builder's (21).
OPSETS = range(18, 22)
LLAMA = ModelIdentity(architecture="llama", layers=3, width=96, hidden=32, vocabulary=264, digest="ab" * 32)


def plan(positions: Positions, layers: tuple[int, ...], region: str = "cube") -> Plan:
    """Neuron Adjust with every coin, residual edits, and a Key Space Detection of two regions."""
    generator = np.random.default_rng(0)
    unit = np.full(32, 32**-0.5, np.float32)
    near, far, others = (generator.normal(place, 1, (20, len(layers) * 96)) for place in (0, 1, 2))
    detection = key_space_detection(
        regions=fitted_regions(region, [near, far], others),
        alpha=np.ones(2),
        skills=("math", "code"),
        layers=layers,
        positions=positions,
        query_start=(5, 6) if positions == "mean" else (),
    )
    moved = (
        ResidualAddition((LayerDirection(0, unit),)),
        ResidualAddition((LayerDirection(1, unit),), keep_norm=True),
        ResidualProjection((LayerDirection(1, unit),)),
    )
    adjusted = (neuron_adjust(coin=coin) for coin in get_args(Coin))
    interventions: tuple[Intervention, ...] = (*adjusted, *moved, detection)
    return Plan(LLAMA, interventions, Canary(np.array([[5]]), tuple(np.zeros((1, 1)) for _ in interventions)))


def has_kernel(node: InsertedNode) -> bool:
    schema = onnx.defs.get_schema(node.operator, node.opset, node.domain)
    formal = [
        *_spread(list(schema.inputs), node.inputs),
        *_spread(list(schema.outputs), len(node.types) - node.inputs),
    ]
    bound = [(parameter, kind) for parameter, kind in zip(formal, node.types, strict=True) if kind]
    for first, last, constraints in TABLE["kernels"].get(f"{node.domain}::{node.operator}", []):
        # As ONNX Runtime does it: a kernel without a last opset serves the operator's version that it starts with.
        if not (first == schema.since_version or (last is not None and first <= schema.since_version <= last)):
            continue
        if all(
            kind in constraints.get(parameter.type_str, constraints.get(parameter.name, [kind]))
            for parameter, kind in bound
        ):
            return True
    return False


def _spread(formal: list[Any], count: int) -> list[Any]:
    """One formal parameter per argument: the last, if variadic, stands for all that follow."""
    return [formal[min(index, len(formal) - 1)] for index in range(count)]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_inserted_node_has_a_kernel(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the smallest bank.
    monkeypatch.setattr(margins, "BANK", 0)
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint", layers=3)
    (tmp_path / "onnx").mkdir()
    path = export_checkpoint(checkpoint, tmp_path / "onnx", dtype)
    before = ir.to_proto(load_graph(path))
    inserted: set[InsertedNode] = set()
    plans = [plan(positions, layers) for positions in get_args(Positions) for layers in ((0, 1), (2,))]
    plans += [plan(positions, (1,), region) for positions in ("query", "every") for region in SHAPES]
    for number, one in enumerate(plans):
        model = load_graph(path)
        apply_plan(model, one, inline=True, early_exit=number % 2 == 0, monitor=True)
        inserted |= inserted_nodes(before, ir.to_proto(model))
    for positions, region in product(get_args(Positions), ("cube", "linear")):
        model = load_graph(path)
        apply_plan(model, plan(positions, (1,), region), inline=True, early_exit=True)
        inserted |= inserted_nodes(before, ir.to_proto(model))
    operators = {node.operator for node in inserted}
    assert {"RandomUniformLike", "ScatterElements", "If", "MatMul", "Sqrt", "GatherND", "NonZero", "Gemm"} <= operators
    assert ("Cast" in operators) and any("float16" in "".join(node.types) for node in inserted) == (dtype == "fp16")
    assert [
        (opset, node) for opset in OPSETS for node in sorted(inserted) if not has_kernel(node._replace(opset=opset))
    ] == []


@pytest.mark.parametrize(
    "node",
    [
        # FACTS: what CUDA has no kernel for.
        InsertedNode("", "ReduceMax", 18, ("tensor(bool)", "tensor(int64)", "tensor(bool)"), 2),
        InsertedNode("", "LessOrEqual", 18, ("tensor(bfloat16)", "tensor(bfloat16)", "tensor(bool)"), 2),
        InsertedNode("", "RandomUniformLike", 18, ("tensor(float)", "tensor(bfloat16)"), 1),
    ],
)
def test_a_hole_would_be_seen(node: InsertedNode) -> None:
    assert not has_kernel(node)
