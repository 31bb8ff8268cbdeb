"""Weight edits in ONNX graphs: ONNX Runtime computes what the edited PyTorch model computes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph, save_graph
from bakeout.graph_passes.graph.weights.weight_location import locate_weight
from bakeout.graph_passes.weight_edits import EditedTensor, WeightEditsPass, write_edited_tensors
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.data.padding import left_padded
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import LowRankUpdate, Plan, Role, WeightEdit, WeightUpdate
from bakeout.models.reference.reference_model import Reference
from bakeout.models.reference.weight_edits import edited_weights, weight_of

from tests.conftest import CheckpointOf
from tests.tiny_models import tiny_checkpoint
from tests.weight_plans import PROMPTS, low_rank_update, plan_of, zero_columns

STEPS = 6
LARGEST_DIFFERENCE = 1e-3
# Gated, fused, Conv1D behind Gemm, Gemm on two dimensions, biases; the rest is in the slow run.
QUICK = ("llama", "phi3", "gpt2", "opt", "gpt_neox")
SLOW = ("falcon", "gemma", "gemma2", "granite", "mistral", "olmo2", "phi", "qwen2", "qwen3", "stablelm")


def _bake(model: ir.Model, plan: Plan, directory: Path) -> Path:
    """Write the baked graph beside an edited copy of its data."""
    apply_plan(model, plan)
    for name, path in data_files(model).items():
        shutil.copyfile(path, directory / name)
    write_edited_tensors(model, directory)
    (directory / "model.onnx").write_bytes(graph_bytes(model))
    return directory / "model.onnx"


def _require_parity(graph: Path, checkpoint: Path, plan: Plan) -> None:
    ids, mask = map(torch.from_numpy, left_padded(PROMPTS))
    with Reference(load_model(checkpoint), plan) as reference:
        tokens, logits = reference.generate(ids, mask, STEPS)
    shutil.copyfile(checkpoint / "config.json", graph.parent / "config.json")
    runner = Runner(graph)
    for index, (said, found) in enumerate(runner.generate_with_logits(PROMPTS, STEPS, batch_size=len(PROMPTS))):
        assert said == tokens[index, : len(said)].tolist()
        np.testing.assert_allclose(found, logits[index, : len(said)].numpy(), atol=LARGEST_DIFFERENCE, rtol=0)


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW)])
def test_a_graph_with_edited_weights_says_what_the_reference_says(
    family: str, checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, tmp_path: Path
) -> None:
    model = load_model(checkpoint_of(family))
    plan = plan_of(model, "ab" * 32, low_rank_update(model), zero_columns(1, 2))
    graph = _bake(load_graph(onnx_of(family) / "model.onnx"), plan, tmp_path)
    _require_parity(graph, checkpoint_of(family), plan)


@pytest.mark.parametrize("family", QUICK)
def test_every_weight_is_found_where_torch_has_it(
    family: str, checkpoint_of: CheckpointOf, onnx_of: CheckpointOf
) -> None:
    layers = feed_forward_layers(load_model(checkpoint_of(family)))
    graph = read_anatomy(load_graph(onnx_of(family) / "model.onnx"))
    roles: tuple[Role, ...] = ("down", "gate") if layers[0].layout == "ungated" else ("down", "gate", "up")
    for layer, found in zip(layers, graph.layers, strict=True):
        for role in roles:
            location = locate_weight(found, role)
            assert location.initialiser.const_value is not None
            values = location.weight_in(location.initialiser.const_value.numpy())
            np.testing.assert_array_equal(values, weight_of(layer, role).detach().numpy())
            assert values.shape == location.shape


def test_only_the_edited_bytes_of_a_data_file_change(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, "ab" * 32, low_rank_update(model, layers=[1], roles=["up"]), zero_columns(3))
    graph = load_graph(llama_export / "model.onnx")
    before = (llama_export / "model.onnx.data").read_bytes()
    written = _bake(graph, plan, tmp_path)
    after = (tmp_path / "model.onnx.data").read_bytes()
    assert (llama_export / "model.onnx.data").read_bytes() == before
    assert len(after) == len(before)
    changed = set(np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)).tolist())
    ranges: set[int] = set()
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, EditedTensor):
            ranges |= set(range(tensor.offset or 0, (tensor.offset or 0) + tensor.nbytes))
    assert changed
    assert changed <= ranges
    _require_parity(written, llama_checkpoint, plan)
    # The graph itself is the one that went in: the edits are in the numbers alone.
    assert (
        onnx.load(written, load_external_data=False).graph.node
        == onnx.load(llama_export / "model.onnx", load_external_data=False).graph.node
    )


def test_an_edited_graph_shows_its_weights_as_edited(llama_checkpoint: Path, llama_export: Path) -> None:
    model = load_model(llama_checkpoint)
    edits: list[WeightEdit] = [low_rank_update(model), zero_columns(0, 1), low_rank_update(model, seed=1)]
    graph = load_graph(llama_export / "model.onnx")
    WeightEditsPass(edits)(graph)
    with edited_weights(model, edits):
        for layer, found in zip(feed_forward_layers(model), read_anatomy(graph).layers, strict=True):
            location = locate_weight(found, "down")
            assert location.initialiser.const_value is not None
            values = location.weight_in(location.initialiser.const_value.numpy())
            np.testing.assert_array_equal(values, weight_of(layer, "down").detach().numpy())
    with pytest.raises(ValueError, match="edited"):
        save_graph(graph, llama_export / "never.onnx")


def test_half_precision_is_edited_in_half_precision(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint", dtype="float16")
    (tmp_path / "export").mkdir()
    (tmp_path / "baked").mkdir()
    export_checkpoint(checkpoint, tmp_path / "export", "fp16")
    model = load_model(checkpoint, Placement("cpu", "float16"))
    plan = plan_of(model, "ab" * 32, low_rank_update(model, roles=["down"]), zero_columns(1))
    graph = load_graph(tmp_path / "export" / "model.onnx")
    receipts = apply_plan(graph, plan)
    assert {receipt.detail["dtype"] for receipt in receipts} == {"float16"}
    with edited_weights(model, plan.interventions):
        for layer, found in zip(feed_forward_layers(model), read_anatomy(graph).layers, strict=True):
            location = locate_weight(found, "down")
            assert location.initialiser.const_value is not None
            values = location.weight_in(location.initialiser.const_value.numpy())
            np.testing.assert_array_equal(values, weight_of(layer, "down").detach().numpy())


def test_receipts_name_linears_initialisers_and_norms(llama_checkpoint: Path, llama_onnx: Path) -> None:
    model = load_model(llama_checkpoint)
    update = low_rank_update(model, layers=[1], rank=3)
    plan = plan_of(model, "ab" * 32, zero_columns(2), update)
    graph = load_graph(llama_onnx / "model.onnx")
    receipts = apply_plan(graph, plan)
    assert [(r.intervention, r.kind, r.layer, r.detail["role"], r.count) for r in receipts] == [
        (0, "zero_columns", 2, "down", 4),
        (1, "low_rank_update", 1, "down", 3),
        (1, "low_rank_update", 1, "gate", 3),
        (1, "low_rank_update", 1, "up", 3),
    ]
    for receipt in receipts:
        assert receipt.tensor in graph.graph.initializers
        assert receipt.before != receipt.after
        assert receipt.detail["share_realised"] == pytest.approx(1, abs=1e-5)
        assert receipt.detail["norm_realised"] == pytest.approx(receipt.detail["norm_asked"], rel=1e-5)
    assert len({receipt.node for receipt in receipts}) == 4


def _llama(onnx_directory: Path) -> ir.Model:
    return load_graph(onnx_directory / "model.onnx")


def _down(model: ir.Model) -> ir.Node:
    return read_anatomy(model).layers[1].down


@pytest.mark.parametrize("through", ["transpose", "cast", "both"])
def test_weights_behind_a_transpose_or_a_cast_are_edited(
    through: str, llama_checkpoint: Path, llama_onnx: Path, tmp_path: Path
) -> None:
    graph = _llama(llama_onnx)
    down = _down(graph)
    weight = down.inputs[1]
    assert weight is not None and weight.const_value is not None
    values = weight.const_value.numpy()
    if through != "cast":
        values = np.ascontiguousarray(values.T)
    if through != "transpose":
        values = values.astype(np.float16)
    stored = ir.Value(name="stored", const_value=ir.tensor(values, name="stored"))
    graph.graph.register_initializer(stored)
    last = stored
    for operator, attributes in (("Transpose", {"perm": (1, 0)}), ("Cast", {"to": 1})):
        if through in (operator.lower(), "both"):
            node = ir.node(operator, [last], attributes)
            graph.graph.insert_before(down, node)
            last = node.outputs[0]
    down.replace_input_with(1, last)
    model = load_model(llama_checkpoint)
    update = low_rank_update(model, layers=[1], roles=["down"])
    (receipt,) = apply_plan(graph, plan_of(model, "ab" * 32, update))
    assert receipt.tensor == "stored"
    assert stored.const_value is not None
    found = stored.const_value.numpy().T if through == "cast" else stored.const_value.numpy()
    before = values.T if through == "cast" else values
    expected = (before.astype(np.float64) + update.updates[0].left.astype(float) @ update.updates[0].right).astype(
        np.float32
    )
    np.testing.assert_array_equal(found, expected.astype(values.dtype))


def _shared(graph: ir.Model) -> None:
    layers = read_anatomy(graph).layers
    layers[3].down.replace_input_with(1, layers[1].down.inputs[1])


def _of_doubles(graph: ir.Model) -> None:
    weight = _down(graph).inputs[1]
    assert weight is not None and weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float64), name=weight.name)


def _quantised(graph: ir.Model) -> None:
    down = _down(graph)
    weight = down.inputs[1]
    assert weight is not None and weight.const_value is not None
    stored = ir.Value(name="stored", const_value=ir.tensor(np.zeros(weight.const_value.shape.numpy(), np.int8)))
    scale = ir.Value(name="scale", const_value=ir.tensor(np.float32(0.1)))
    graph.graph.register_initializer(stored)
    graph.graph.register_initializer(scale)
    node = ir.node("DequantizeLinear", [stored, scale])
    graph.graph.insert_before(down, node)
    down.replace_input_with(1, node.outputs[0])


def _four_bits(graph: ir.Model) -> None:
    down = _down(graph)
    blocks = ir.Value(name="blocks", const_value=ir.tensor(np.zeros((32, 6, 8), np.uint8)))
    scales = ir.Value(name="scales", const_value=ir.tensor(np.ones(32 * 6, np.float32)))
    node = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        [down.inputs[0], blocks, scales],
        [ir.AttrInt64(name, value) for name, value in (("K", 96), ("N", 32), ("bits", 4), ("block_size", 16))],
        name="four",
    )
    graph.graph.insert_before(down, node)
    ir.convenience.replace_all_uses_with(down.outputs[0], node.outputs[0])
    graph.graph.remove(down)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_shared, "read by other nodes too"),
        (_of_doubles, "DOUBLE"),
        (_quantised, "quantised"),
        (_four_bits, r"MatMulNBits\) is quantised"),
    ],
)
def test_weights_that_cannot_be_edited_are_refused_before_any_is(
    spoil: Callable[[ir.Model], None], cause: str, llama_checkpoint: Path, llama_onnx: Path
) -> None:
    graph = _llama(llama_onnx)
    spoil(graph)
    model = load_model(llama_checkpoint)
    before = {name: value.const_value for name, value in graph.graph.initializers.items()}
    with pytest.raises(GraphError, match=cause):
        WeightEditsPass([low_rank_update(model, layers=[0, 1], roles=["down"])])(graph)
    assert {name: value.const_value for name, value in graph.graph.initializers.items()} == before


def test_initialisers_that_share_bytes_are_refused(llama_checkpoint: Path, llama_export: Path, tmp_path: Path) -> None:
    proto = onnx.load(llama_export / "model.onnx", load_external_data=False)
    model = load_model(llama_checkpoint)
    graph = load_graph(llama_export / "model.onnx")
    names = [read_anatomy(graph).layers[layer].down.inputs[1] for layer in (1, 2)]
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    first, second = (tensors[value.name] for value in names if value is not None)
    del second.external_data[:]
    second.external_data.extend(first.external_data)
    shutil.copyfile(llama_export / "model.onnx.data", tmp_path / "model.onnx.data")
    onnx.save(proto, tmp_path / "model.onnx")
    for layer in (1, 2):
        with pytest.raises(GraphError, match="share bytes"):
            WeightEditsPass([low_rank_update(model, layers=[layer], roles=["down"])])(_llama(tmp_path))
    WeightEditsPass([low_rank_update(model, layers=[3], roles=["down"])])(_llama(tmp_path))


def test_an_ungated_layer_has_no_up(checkpoint_of: CheckpointOf, onnx_of: CheckpointOf) -> None:
    graph = load_graph(onnx_of("gpt2") / "model.onnx")
    update = LowRankUpdate("x", (WeightUpdate(0, "up", np.ones((96, 1), np.float32), np.ones((1, 32), np.float32)),))
    with pytest.raises(GraphError, match="ungated"):
        WeightEditsPass([update])(graph)


def test_a_change_that_rounds_away_is_an_error(llama_checkpoint: Path, llama_onnx: Path) -> None:
    model = load_model(llama_checkpoint)
    with pytest.raises(BakeoutError, match="rounds away in float32"):
        WeightEditsPass([low_rank_update(model, scale=1e-9)])(_llama(llama_onnx))
