"""``--quantize int8``: quantised weights, interventions in float32 beside them, and a verification that means it."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import Baked, bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.baking.quantise import quantise
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import RecipeError, load_recipe
from bakeout.export.verification.formulas import check_formulas
from bakeout.export.verification.parity import check_quantised
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Intervention, KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.progress import untracked

from tests.conftest import CheckpointOf
from tests.graph_passes.inserted_nodes import with_branches
from tests.recipe_files import rows, write_recipe
from tests.weight_plans import PROMPTS, low_rank_update, zero_columns
from tests.weight_plans import plan_of as weight_plan

INT8 = BakeOptions(quantize="int8")


@pytest.fixture(scope="module")
def baked(llama_export: Path, tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("quantised") / "artifact", INT8)


@pytest.fixture(scope="module")
def prompts(llama_checkpoint: Path) -> list[list[int]]:
    """What the plan forgets, which its cubes hold, and what it retains."""
    encode = load_tokenizer(llama_checkpoint).encode
    texts = [row["prompt"] for subject in ("sums", "names") for row in rows(subject, "test")]
    return [list(encode(text)) for text in texts]


def test_quantising_leaves_logging_as_it_is(llama_export: Path, tmp_path: Path) -> None:
    """ONNX Runtime's tools log by the root logger, which makes itself a handler if it has none."""
    before = logging.root.handlers[:]
    logging.root.handlers.clear()
    try:
        quantise(load_graph(llama_export / "model.onnx"), tmp_path)
        assert not logging.root.handlers
        assert logging.root.manager.disable == 0
    finally:
        logging.root.handlers[:] = before


def test_no_shape_is_told_of_what_nothing_reads(tmp_path: Path) -> None:
    """It may be that of a function which stands for an operator of ONNX Runtime, and not hold there."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        graph (float[1, n, 4] x) => (float[1, n, 4] y)
        <float[4, 4] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, float[4] scale = {1, 1, 1, 1}>
        {
            z, unread, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization (x, x, scale)
            product = MatMul (z, weight)
            y = Add (product, sum)
        }
        <domain: "com.microsoft", opset_import: ["" : 21]>
        SkipSimplifiedLayerNormalization (x, skip, scale) => (z, mean, deviation, sum)
        {
            sum = Add (x, skip)
            z = Mul (sum, scale)
            mean = Constant <value_floats = [0.0]> ()
            deviation = Constant <value_floats = [1.0]> ()
        }
        """
    )
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "int8").mkdir()
    quantised = quantise(load_graph(tmp_path / "model.onnx"), tmp_path / "int8")
    shapes = {output.name: output.shape for node in quantised.graph for output in node.outputs}
    assert shapes["unread"] is shapes["deviation"] is None
    assert shapes["z"] is not None


def test_products_are_of_integers_and_interventions_in_float32(baked: Baked, llama_export: Path) -> None:
    before, after = (
        onnx.load(directory / "model.onnx", load_external_data=False) for directory in (llama_export, baked.directory)
    )
    weights = {tensor.name for tensor in before.graph.initializer}
    products = [node for node in before.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    nodes = list(_nodes(after.graph))
    assert len(products) == 29
    assert sum(node.op_type == "MatMulInteger" for node in nodes) == len(products)
    types = {tensor.name: tensor.data_type for graph in with_branches(after.graph) for tensor in graph.initializer}
    own = {kind for name, kind in types.items() if name.startswith("bakeout.")}
    assert onnx.TensorProto.FLOAT in own
    # Decisions are booleans; no number of an intervention is quantised or halved.
    assert own <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}


def test_weights_have_seven_bits(baked: Baked) -> None:
    """With eight, processors without VNNI saturate."""
    model = onnx.load(baked.directory / "model.onnx")
    stored = [
        onnx.numpy_helper.to_array(tensor)
        for graph in with_branches(model.graph)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert len(stored) == 29
    assert max(int(np.abs(array.astype(int)).max()) for array in stored) <= 64


def test_it_is_verified(baked: Baked, llama_checkpoint: Path, prompts: list[list[int]]) -> None:
    checks = verify(baked.directory, base=llama_checkpoint, prompts=prompts)
    assert all(check.ok for check in checks), checks
    assert "compared with the formulas" in checks[-1].detail
    # Six are the prompts', two the canary's, one of them too near to a boundary to be compared with the reference.
    assert "8 of 15 prompts refused" in checks[-1].detail, checks[-1].detail
    assert "7 of 13 prompts refused by both" in checks[-1].detail, checks[-1].detail
    assert read_manifest(baked.directory)["options"]["quantize"] == "int8"
    assert read_manifest(baked.directory)["versions"]["baked_with"]["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("kind", [NeuronAdjust, KeySpaceDetection])
def test_verification_tells_an_intervention_that_is_not_the_plans(
    baked: Baked, tiny_plan: Plan, prompts: list[list[int]], kind: type[NeuronAdjust | KeySpaceDetection]
) -> None:
    def spoiled(one: NeuronAdjust | KeySpaceDetection) -> NeuronAdjust | KeySpaceDetection:
        if isinstance(one, KeySpaceDetection):
            return dataclasses.replace(one, alpha=one.alpha / 100)
        first = dataclasses.replace(one.layers[0], retain_mean=one.layers[0].retain_mean + 1)
        return dataclasses.replace(one, layers=(first, *one.layers[1:]))

    interventions = tuple(spoiled(one) if isinstance(one, kind) else one for one in tiny_plan.interventions)
    plan = dataclasses.replace(tiny_plan, interventions=interventions)
    ok, detail = check_formulas(baked.directory / "model.onnx", plan, baked.receipts, prompts, untracked)
    assert not ok
    assert ("shifted" if kind is NeuronAdjust else "refused") in detail


def test_verification_tells_another_model(
    baked: Baked, tiny_plan: Plan, llama_checkpoint: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    """One whose interventions are whole: only what is beside the reference tells it."""
    copy = tmp_path / "copy"
    shutil.copytree(baked.directory, copy)
    model = onnx.load(copy / "model.onnx")
    head = max((tensor for tensor in model.graph.initializer), key=lambda tensor: np.prod(tensor.dims))
    for graph in with_branches(model.graph):
        for tensor in graph.initializer:
            if tensor.name.startswith("lm_head") and tensor.data_type == onnx.TensorProto.INT8 and tensor.dims:
                head = tensor
    head.CopyFrom(onnx.numpy_helper.from_array(np.roll(onnx.numpy_helper.to_array(head), 7, axis=-1), head.name))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    base = Checkpoint(llama_checkpoint)
    ok, detail = check_quantised(copy / "model.onnx", tiny_plan, baked.receipts, base, prompts, untracked)
    assert not ok, detail


def test_edited_weights_are_quantised_with_the_rest(llama_checkpoint: Path, llama_export: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    plan = weight_plan(model, weights_digest(llama_checkpoint), low_rank_update(model, scale=1.0), zero_columns(1))
    directory = bake(llama_export, plan, tmp_path / "baked", INT8).directory
    assert any(node.op_type == "MatMulInteger" for node in _nodes(onnx.load(directory / "model.onnx").graph))
    checks = verify(directory, base=llama_checkpoint, prompts=PROMPTS)
    assert all(check.ok for check in checks), checks


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "opt"])
def test_products_that_are_gemms(checkpoint_of: CheckpointOf, family: str, tmp_path: Path) -> None:
    """They become MatMuls, some of them by transposing the weight, and the FFLs are found behind them."""
    recipe = write_recipe(tmp_path, str(checkpoint_of(family)), export={"quantize": "int8"})
    built = build(recipe, tmp_path / "artifact")
    model = onnx.load(built.directory / "model.onnx", load_external_data=False)
    assert not any(node.op_type == "Gemm" for node in _nodes(model.graph))


def test_bytes_are_the_same_from_build_to_build(
    baked: Baked, llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    again = bake(llama_export, tiny_plan, tmp_path / "again", INT8).directory
    for path in baked.directory.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_graph_that_somebody_else_has_quantised(
    llama_export: Path, tiny_plan: Plan, prompts: list[list[int]], tmp_path: Path
) -> None:
    """As optimum and most people do it: eight bits, a scale for each tensor, the embeddings too."""
    shutil.copytree(llama_export, tmp_path / "theirs")
    quantize_dynamic(llama_export / "model.onnx", tmp_path / "theirs" / "model.onnx", weight_type=QuantType.QUInt8)
    (tmp_path / "theirs" / "model.onnx.data").unlink()
    with pytest.raises(BakeoutError, match="quantised already"):
        bake(tmp_path / "theirs", tiny_plan, tmp_path / "artifact", INT8)
    baked = bake(tmp_path / "theirs", tiny_plan, tmp_path / "artifact")
    assert {receipt.layer for receipt in baked.receipts} == {
        layer for one in tiny_plan.interventions for layer in _layers(one)
    }
    ok, detail = check_formulas(baked.directory / "model.onnx", tiny_plan, baked.receipts, prompts, untracked)
    assert ok, detail


def test_what_cannot_be_quantised_is_refused(
    llama_checkpoint: Path, llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    acts = (dry_run, lambda model, plan, options: bake(model, plan, tmp_path / "out", options))
    for options, reason in (
        (BakeOptions(dtype="fp16", quantize="int8"), "not from fp16"),
        (BakeOptions(to="safetensors", quantize="int8"), "a checkpoint keeps its type"),
    ):
        for act in acts:
            with pytest.raises(BakeoutError, match=reason):
                act(llama_checkpoint, tiny_plan, options)
    export_checkpoint(llama_checkpoint, tmp_path, "fp16")
    for act in acts:
        with pytest.raises(BakeoutError, match="float16, and quantisation needs float32"):
            act(tmp_path, tiny_plan, INT8)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", [{"dtype": "fp16"}, {"to": "safetensors"}])
def test_recipes_that_contradict_themselves_are_refused(
    llama_checkpoint: Path, tmp_path: Path, other: dict[str, str]
) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, export={"quantize": "int8", **other})
    with pytest.raises(RecipeError, match=r"line 4: .*(comes from fp32|keeps its type)"):
        load_recipe(recipe)


def test_a_dry_run_says_what_will_be_done(llama_export: Path, tiny_plan: Plan, baked: Baked) -> None:
    found = dry_run(llama_export, tiny_plan, INT8)
    assert [(one.layer, one.tensor, one.count) for one in found.receipts] == [
        (one.layer, one.tensor, one.count) for one in baked.receipts
    ]
    assert not any(one.before or one.after for one in found.receipts)
    assert found.disk > dry_run(llama_export, tiny_plan, BakeOptions()).disk


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for branch in with_branches(graph):
        yield from branch.node


def _layers(intervention: Intervention) -> Sequence[int]:
    if isinstance(intervention, KeySpaceDetection):
        return intervention.layers
    assert isinstance(intervention, NeuronAdjust)
    return [layer.layer for layer in intervention.layers]
