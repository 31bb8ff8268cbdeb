"""Five public shapes of repositories, with the files that lie in them: each is inspected, baked, verified and asked."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.running.genai_config import write_genai_config
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests.recipe_files import KEY_SPACE_DETECTION, write_recipe

Shape = Callable[[str], Path]
REVISION = "c" * 40
SNAPSHOT = f"models--onnx-community--small-ONNX/snapshots/{REVISION}"


@pytest.fixture(scope="module")
def plan(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return fit(load_recipe(write_recipe(tmp_path_factory.mktemp("plan"), llama_checkpoint, [KEY_SPACE_DETECTION])))


@pytest.fixture(scope="module")
def shape(llama_checkpoint: Path, llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """``shape(name)``: a repository of this shape, made once."""
    root = tmp_path_factory.mktemp("shapes")
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = root / name
            if name == "hub":
                _link_as_the_hub_does(get("transformers.js"), made[name])
            else:
                _MAKE[name](llama_checkpoint, llama_onnx, made[name])
        return made[name]

    return get


def _copy_companions(source: Path, directory: Path) -> None:
    directory.mkdir()
    for path in source.iterdir():
        if path.suffix != ".onnx":
            shutil.copy(path, directory)


def _save_in_chunks(model: onnx.ModelProto, path: Path) -> None:
    """With its larger tensors in two data files, named as transformers.js looks for them."""
    tensors = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1024]
    for number, tensor in enumerate(tensors):
        onnx.external_data_helper.set_external_data(tensor, f"{path.name}_data" + ("_1" if number % 2 else ""))
    onnx.save(model, path)


def _transformers_js(checkpoint: Path, graph: Path, repository: Path) -> None:
    """``onnx/`` with a graph in chunks, and one for each way to make it smaller."""
    _copy_companions(graph, repository)
    (repository / "README.md").write_text("---\nlibrary_name: transformers.js\n---\n", encoding="utf-8")
    (repository / ".gitattributes").write_text("*.onnx_data* filter=lfs\n", encoding="utf-8")
    (repository / "quantize_config.json").write_text('{"modes": ["fp16", "q4"]}', encoding="utf-8")
    folder = repository / "onnx"
    folder.mkdir()
    whole = graph / "model.onnx"
    _save_in_chunks(onnx.load(whole), folder / "model.onnx")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    quantize_dynamic(whole, folder / "model_int8.onnx", weight_type=QuantType.QInt8)
    quantize_dynamic(whole, folder / "model_quantized.onnx", weight_type=QuantType.QUInt8, per_channel=True)
    # In four bits a random model is another one; behind the layers that are checked, it may be.
    kept = [node.name for node in onnx.load(whole).graph.node if "layers.3/mlp" not in node.name]
    four_bits = MatMulNBitsQuantizer(onnx.load(whole), block_size=32, is_symmetric=True, nodes_to_exclude=kept)
    four_bits.process()
    four_bits.model.save_model_to_file(str(folder / "model_q4.onnx"), True)
    normal_floats = MatMulBnb4Quantizer(onnx.load(whole), MatMulBnb4Quantizer.NF4, 32, nodes_to_exclude=kept)
    normal_floats.process()
    normal_floats.model.save_model_to_file(str(folder / "model_bnb4.onnx"))
    logging.disable(before)
    (repository / "half").mkdir()
    half = export_checkpoint(checkpoint, repository / "half", "fp16")
    onnx.save(onnx.load(half), folder / "model_fp16.onnx", save_as_external_data=True, location="model_fp16.onnx_data")
    shutil.rmtree(repository / "half")


def _genai(_checkpoint: Path, graph: Path, repository: Path) -> None:
    """Several graphs, of which ``genai_config.json`` names the decoder; ``model.onnx`` is not it."""
    _copy_companions(graph, repository)
    decoder = repository / "decoder_cpu.onnx"
    onnx.save(onnx.load(graph / "model.onnx"), decoder, save_as_external_data=True, location="decoder_cpu.onnx.data")
    write_genai_config(repository, load_graph(decoder), decoder.name)
    for name in ("model.onnx", "embeddings.onnx", "speech.onnx"):
        onnx.save(_small_graph(), repository / name)


def _small_graph(*inputs: str) -> onnx.ModelProto:
    named = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids",)]
    named += [helper.make_tensor_value_info(name, TensorProto.BOOL, [1]) for name in inputs]
    output = helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch", "tokens"])
    nodes = [helper.make_node("Identity", ["input_ids"], ["logits"])]
    graph = helper.make_graph(nodes, "small", named, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _link_as_the_hub_does(source: Path, cache: Path) -> None:
    """By relative links to blobs, beside what else the hub's cache holds."""
    home = cache / "models--onnx-community--small-ONNX"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION, encoding="utf-8")
    (home / ".no_exist" / REVISION).mkdir(parents=True)
    (home / ".no_exist" / REVISION / "adapter_config.json").touch()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        blob = home / "blobs" / hashlib.sha256(str(path.relative_to(source)).encode()).hexdigest()
        shutil.copy(path, blob)
        link = home / "snapshots" / REVISION / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def _optimum(_checkpoint: Path, graph: Path, repository: Path) -> None:
    """What optimum once wrote: a first pass, one with past, and both merged."""
    _copy_companions(graph, repository)
    model = onnx.load(graph / "model.onnx")
    name = "decoder_with_past_model.onnx"
    onnx.save(model, repository / name, save_as_external_data=True, location=f"{name}_data")
    onnx.save(_small_graph(), repository / "decoder_model.onnx")
    onnx.save(_small_graph("use_cache_branch"), repository / "decoder_model_merged.onnx")
    (repository / "ort_config.json").write_text('{"opset": null, "quantization": {}}', encoding="utf-8")


def _both(checkpoint: Path, graph: Path, repository: Path) -> None:
    """Safetensors at the root, ``onnx/`` beside them, and an adapter in a folder of its own."""
    shutil.copytree(checkpoint, repository)
    (repository / "onnx").mkdir()
    _save_in_chunks(onnx.load(graph / "model.onnx"), repository / "onnx" / "model.onnx")
    (repository / "adapter").mkdir()
    (repository / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}', encoding="utf-8")
    shutil.copy(checkpoint / "model.safetensors", repository / "adapter" / "adapter_model.safetensors")


_MAKE = {"transformers.js": _transformers_js, "genai": _genai, "optimum": _optimum, "both": _both}


def bakeout(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{arguments}\n{result.output}"
    return result.stdout


@pytest.mark.parametrize(
    ("name", "within", "variant"),
    [
        ("transformers.js", "", None),
        *[("transformers.js", "", variant) for variant in ("fp16", "q4")],
        ("genai", "", None),
        ("hub", SNAPSHOT, None),
        ("optimum", "", None),
        ("both", "", None),
        pytest.param("transformers.js", "onnx", None, marks=pytest.mark.slow),
        *[pytest.param("transformers.js", "", variant, marks=pytest.mark.slow) for variant in ("int8", "bnb4", "q8")],
        pytest.param("hub", SNAPSHOT, "q4", marks=pytest.mark.slow),
        pytest.param("both", "", "fp32", marks=pytest.mark.slow),
        pytest.param("hub", SNAPSHOT, "fp16", marks=pytest.mark.slow),
        pytest.param("both", "onnx", None, marks=pytest.mark.slow),
    ],
)
def test_a_public_repository_becomes_an_artifact(
    shape: Shape, plan: Plan, llama_checkpoint: Path, tmp_path: Path, name: str, within: str, variant: str | None
) -> None:
    save_plan(plan, tmp_path / "plan.safetensors")
    artifact = tmp_path / "artifact"
    chosen = [] if variant is None else ["--variant", variant]
    bakeout("bake", shape(name) / within, tmp_path / "plan.safetensors", "-o", artifact, *chosen)
    assert "Key Space Detection" in bakeout("inspect", artifact)
    checked = bakeout("verify", artifact, "--base", llama_checkpoint)
    assert "got the whole refusal, which then stopped" in checked
    assert bakeout("chat", artifact, "--prompt", "What is it?").strip()


@pytest.mark.parametrize("variant", ["fp32", "q4", "bnb4"])
def test_it_becomes_such_a_repository_again(shape: Shape, plan: Plan, tmp_path: Path, variant: str) -> None:
    options = BakeOptions(variant=variant, runtimes=("transformers.js",))
    artifact = bake(shape("transformers.js"), plan, tmp_path / "artifact", options).directory
    name = {"fp32": "model.onnx"}.get(variant, f"model_{variant}.onnx")
    data = {"fp32": [f"{name}_data", f"{name}_data_1"], "q4": [f"{name}_data"], "bnb4": []}[variant]
    assert sorted(path.name for path in (artifact / "onnx").iterdir()) == [name, *data]
    plain = bake(shape("transformers.js"), plan, tmp_path / "plain", BakeOptions(variant=variant)).directory
    prompts = [[5, 6, 7], [40, 41]]
    assert Runner(artifact).generate(prompts, 8) == Runner(plain).generate(prompts, 8)
    # It can be the source of nothing: a plan is in it already.
    again = CliRunner().invoke(main, ["bake", str(artifact), str(artifact / "plan.safetensors"), "-o", "again"])
    assert again.exit_code == 1
    assert "is an artifact" in again.output


@pytest.mark.parametrize(
    ("name", "within", "says"),
    [
        ("optimum", "decoder_model_merged.onnx", "merged decoder"),
        ("both", "adapter", "an adapter alone, of a/b"),
        ("genai", "embeddings.onnx", "No feed-forward layer"),
    ],
)
def test_what_is_no_decoder_is_refused_by_name(
    shape: Shape, plan: Plan, tmp_path: Path, name: str, within: str, says: str
) -> None:
    save_plan(plan, tmp_path / "plan.safetensors")
    arguments = ["bake", shape(name) / within, tmp_path / "plan.safetensors", "-o", tmp_path / "artifact"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert says in result.output
    assert json.dumps(result.output).count("\\n") <= 3
