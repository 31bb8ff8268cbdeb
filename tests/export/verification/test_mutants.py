"""Graphs that were edited where one comparison alone can tell: each is found, and the untouched one passes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import Check, verify
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Canary, NeuronAdjust, Plan

from tests.graph_pairs import split
from tests.graph_passes.inserted_nodes import with_branches

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("mutants") / "artifact").directory


@pytest.fixture(scope="module")
def quantised(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mutants") / "quantised"
    return bake(llama_export, tiny_plan, directory, BakeOptions(quantize="int8")).directory


@pytest.fixture(scope="module")
def drawing(tiny_plan: Plan) -> Plan:
    """A plan whose one intervention draws."""
    adjust = next(one for one in tiny_plan.interventions if isinstance(one, NeuronAdjust))
    canary = Canary(tiny_plan.canary.input_ids, tiny_plan.canary.expected[:1])
    return dataclasses.replace(
        tiny_plan, interventions=(dataclasses.replace(adjust, coin="stochastic", seed=7),), canary=canary
    )


def _mutant(artifact: Path, directory: Path, edit: Edit, name: str = "model.onnx") -> Path:
    shutil.copytree(artifact, directory)
    model = onnx.load(artifact / name, load_external_data=False)
    edit(model)
    (directory / name).write_bytes(model.SerializeToString())
    return directory


def _parity(directory: Path, base: Path | None) -> Check:
    (check,) = verify(directory, base=base, checks=["parity"])
    return check


def _canary(directory: Path) -> Check:
    (check,) = verify(directory, checks=["canary"])
    return check


def _zero_head(vocabulary: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensors = [tensor for graph in with_branches(model.graph) for tensor in graph.initializer]
        (head,) = (tensor for tensor in tensors if len(tensor.dims) == 2 and tensor.dims[1] == vocabulary)
        zeros = np.zeros(tuple(head.dims), helper.tensor_dtype_to_np_dtype(head.data_type))
        head.CopyFrom(numpy_helper.from_array(zeros, head.name))

    return edit


def _node(model: onnx.ModelProto, name: str) -> tuple[onnx.GraphProto, onnx.NodeProto]:
    (found,) = (
        (graph, node)
        for graph in with_branches(model.graph)
        for node in graph.node
        if node.name == f"bakeout.key_space_detection.{name}"
    )
    return found


def _swap(model: onnx.ModelProto) -> None:
    _, node = _node(model, "latched_value.Where_0")
    node.input[1], node.input[2] = node.input[2], node.input[1]


def _negate(model: onnx.ModelProto) -> None:
    graph, node = _node(model, "latched_value.If_0")
    graph.node.insert(list(graph.node).index(node), helper.make_node("Not", [node.input[0]], ["negated"]))
    node.input[0] = "negated"


def _becomes(name: str, before: str, after: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        _, node = _node(model, name)
        assert node.op_type == before
        node.op_type = after

    return edit


def _first_row_alone(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if "logits" in node.output)
    node.output[list(node.output).index("logits")] = "logits.of_all"
    ends = [helper.make_tensor(name, onnx.TensorProto.INT64, [1], [end]) for name, end in (("from", 0), ("to", 1))]
    model.graph.initializer.extend(ends)
    model.graph.node.append(helper.make_node("Slice", ["logits.of_all", "from", "to"], ["logits"]))


def test_a_quantised_head_is_compared_though_the_canary_is_near_the_boundary(
    quantised: Path, tiny_plan: Plan, llama_checkpoint: Path, tmp_path: Path
) -> None:
    whole = _parity(quantised, llama_checkpoint)
    assert whole.ok, whole.detail
    assert "the logits of 5 prompts that pass correlate 1.00" in whole.detail
    mutant = _mutant(quantised, tmp_path / "mutant", _zero_head(tiny_plan.model.vocabulary))
    edited = _parity(mutant, llama_checkpoint)
    assert not edited.ok
    assert "correlate nan (at least 0.5)" in edited.detail


@pytest.mark.parametrize("edit", [_swap, _negate])
def test_a_latch_that_fails_beside_an_answer_is_found(quantised: Path, tmp_path: Path, edit: Edit) -> None:
    """Sequences that are refused alone never show it."""
    assert _canary(quantised).ok
    edited = _canary(_mutant(quantised, tmp_path / "mutant", edit))
    assert not edited.ok
    assert edited.detail.endswith("in a batch with one that is not did not get the whole refusal")


@pytest.mark.parametrize(
    "edit",
    [_becomes("Greater_1", "Greater", "LessOrEqual"), _becomes("Or_1", "Or", "And")],
    ids=["no run of several tokens may be a query", "none behind a past is one"],
)
def test_a_query_on_a_kept_cache_is_decided(artifact: Path, tmp_path: Path, edit: Edit) -> None:
    whole = _canary(artifact)
    assert whole.ok, whole.detail
    edited = _canary(_mutant(artifact, tmp_path / "mutant", edit))
    assert not edited.ok
    assert "behind the cache of a sequence that is answered another is answered, its key in a region" in edited.detail


@pytest.mark.parametrize("form", ["one graph", "pair", "int8"])
def test_a_stochastic_artifact_is_compared_with_its_coins_decided(
    drawing: Plan, llama_checkpoint: Path, llama_export: Path, tmp_path: Path, form: str
) -> None:
    is_pair = form == "pair"
    source = split(llama_export, tmp_path / "source") if is_pair else llama_export
    options = BakeOptions(quantize="int8") if form == "int8" else BakeOptions()
    # Its expected values are those of another coin.
    baked = bake(source, drawing, tmp_path / "baked", options, canary=False).directory
    whole = _parity(baked, llama_checkpoint)
    assert whole.ok, whole.detail
    alone = _parity(baked, None)
    assert not alone.ok
    assert alone.detail.startswith("skipped: it needs the base model's checkpoint")
    assert "its stochastic coin: " in alone.detail
    head = _zero_head(drawing.model.vocabulary)
    mutant = _mutant(baked, tmp_path / "mutant", head, "prefill.onnx" if is_pair else "model.onnx")
    assert not _parity(mutant, llama_checkpoint).ok


def test_logits_of_another_batch_are_a_failed_check(artifact: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    mutant = _mutant(artifact, tmp_path / "mutant", _first_row_alone)
    with pytest.raises(BakeoutError, match=r"gives logits of shape \[1, 2, \d+\] for a batch of 2"):
        Runner(mutant).generate([[5, 6], [7, 8]], 1)
    checks = verify(mutant, base=llama_checkpoint, checks=["canary", "parity"])
    assert [check.ok for check in checks] == [False, False]
    assert all("gives logits of shape" in check.detail for check in checks)
