"""Residual additions and projections in graphs, against the hooks of the reference: token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.plan import Intervention, LayerDirection, PlanError, ResidualAddition

from tests.baked_parity import (
    baked,
    compare,
    key_space_detection,
    model_of,
    neuron_adjust,
    plan_of,
    unbaked,
)
from tests.conftest import CheckpointOf
from tests.exported_graphs import HALF, PROMPTS, export
from tests.residual_plans import LAYERS, residual_addition, residual_projection
from tests.tiny_models import tiny_checkpoint

EXPORTS = ("optimum fp32", "genai fp32", "dynamo opset20", "optimum fp16", "genai int4")
# `make test` has these alone.
QUICK = ("optimum fp32", "genai fp32")
EDITS: dict[str, Callable[[PreTrainedModel], Sequence[Intervention]]] = {
    "addition": lambda model: [residual_addition(model)],
    "norms kept": lambda model: [residual_addition(model, keep_norm=True)],
    "projection": lambda model: [residual_projection(model)],
    "one behind the other": lambda model: [residual_projection(model), residual_addition(model, layers=(0, 3))],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """``exported("genai fp32")``: the graph's directory, and a model with its weights, made once."""
    checkpoint = tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"), hidden=64)
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def get(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in made:
            made[name] = export(checkpoint, tmp_path_factory.mktemp("exported") / "model", name)
        return made[name]

    return get


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EXPORTS]
)
def test_it_says_what_the_reference_says(
    exported: Callable[[str], tuple[Path, PreTrainedModel]], name: str, edits: str
) -> None:
    directory, model = exported(name)
    half = name.endswith("fp16")
    plan = plan_of(model, EDITS[edits](model), PROMPTS)
    parity = compare(model, plan, unbaked(directory), baked(directory, plan), PROMPTS, HALF if half else 1e-3)
    assert parity.alike == parity.prompts and parity.changed >= parity.prompts / 2, parity
    assert parity.ties < (0.3 if half else 0.1), parity


# Parallel blocks, norms behind the FFL, a multiplied residual, LayerNorm with biases, flattened batches.
@pytest.mark.parametrize(
    "family",
    ["gpt_neox", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("granite", "gpt2", "opt"))],
)
def test_forms_of_residual_streams(checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str) -> None:
    model = model_of(checkpoint_of(family))
    plan = plan_of(model, EDITS["one behind the other"](model), PROMPTS)
    parity = compare(model, plan, unbaked(onnx_of(family)), baked(onnx_of(family), plan), PROMPTS)
    assert parity.holds, parity


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("layers", [(1,), (3,)], ids=["middle", "last"])
def test_with_all_that_acts_on_graphs(
    llama_checkpoint: Path, llama_onnx: Path, layers: tuple[int, ...], early_exit: bool
) -> None:
    model = model_of(llama_checkpoint)
    adjust = neuron_adjust(model, "expected", PROMPTS)
    moved = [residual_projection(model, layers=(0, 1)), adjust, residual_addition(model, layers=(1, 3))]
    check = key_space_detection(model, layers, "every", PROMPTS, moved)
    plan = plan_of(model, [moved[0], check, *moved[1:]], PROMPTS)
    runner = baked(llama_onnx, plan, early_exit=early_exit)
    parity = compare(model, plan, unbaked(llama_onnx), runner, PROMPTS)
    assert parity.holds and 0 < parity.refused < parity.prompts, parity


def test_an_addition_is_one_node_a_layer(exported: Callable[[str], tuple[Path, PreTrainedModel]]) -> None:
    for name in ("optimum fp32", "genai fp32"):
        directory, model = exported(name)
        before, graph = (load_graph(directory / "model.onnx") for _ in range(2))
        receipts = apply_plan(graph, plan_of(model, [residual_addition(model)], PROMPTS))
        added = sorted(node.op_type for node in graph.graph)
        for node in before.graph:
            added.remove(node.op_type)
        assert added == ["Add"] * len(LAYERS)
        assert [receipt.layer for receipt in receipts] == list(LAYERS)
        assert all(receipt.before != receipt.after and receipt.count == 1 for receipt in receipts)


def test_a_coefficient_scales_the_direction(llama_checkpoint: Path) -> None:
    model = model_of(llama_checkpoint)
    one = residual_addition(model)
    halved = ResidualAddition(
        tuple(LayerDirection(each.layer, each.direction * np.float32(2)) for each in one.layers), one.coefficient / 2
    )
    expected, measured = (plan_of(model, [edit], PROMPTS).canary.expected[0] for edit in (one, halved))
    assert np.allclose(expected, measured, rtol=1e-5, atol=1e-6)


def test_blocks_that_end_in_a_norm_are_refused(checkpoint_of: CheckpointOf) -> None:
    model = model_of(checkpoint_of("bart"))
    with pytest.raises(PlanError, match="normalises its residual stream"):
        plan_of(model, [ResidualAddition((LayerDirection(0, np.ones(32, np.float32)),))], PROMPTS)


@pytest.mark.slow
def test_a_constant_beyond_float16_is_refused(exported: Callable[[str], tuple[Path, PreTrainedModel]]) -> None:
    directory, model = exported("optimum fp16")
    one = residual_addition(model)
    plan = plan_of(model, [ResidualAddition(one.layers, 1e9)], PROMPTS)
    with pytest.raises(GraphError, match="leaves the range of FLOAT16"):
        apply_plan(load_graph(directory / "model.onnx"), plan)
