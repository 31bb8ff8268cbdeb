"""``--runtime``: what a runtime needs is seen to, or baking says why it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.baking.runtimes import NEWEST_OPSET, RUNTIMES
from bakeout.export.cli.main import main
from bakeout.export.recipes.bake_options import BakeOptions, RuntimeName
from bakeout.export.running.genai_config import GENAI_CONFIG
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan


def copied(source: Path, directory: Path) -> Path:
    shutil.copytree(source, directory)
    return directory


def test_every_runtime_has_a_name_in_recipes_and_help() -> None:
    assert get_args(RuntimeName) == tuple(RUNTIMES)
    helped = "".join(CliRunner().invoke(main, ["bake", "--help"], standalone_mode=False).output.split())
    assert "|".join(RUNTIMES) in helped


def test_names_are_taken_once() -> None:
    assert BakeOptions(runtimes=("web", "genai", "web")).runtimes == ("web", "genai")


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if not runtime.functions])
def test_functions_are_inlined_for_runtimes_without(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path, name: RuntimeName
) -> None:
    options = BakeOptions(runtimes=("onnxruntime", name))
    baked = bake(llama_export, tiny_plan, tmp_path / "baked", options, canary=False).directory
    assert not onnx.load(baked / "model.onnx", load_external_data=False).functions
    assert read_manifest(baked)["options"]["runtimes"] == ["onnxruntime", name]
    assert read_manifest(baked)["options"]["inline"] is True


def test_transformers_js_finds_what_it_looks_for(llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    base = copied(llama_export, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    plain = bake(base, tiny_plan, tmp_path / "plain", canary=False).directory
    baked = bake(base, tiny_plan, tmp_path / "baked", BakeOptions(runtimes=("transformers.js",))).directory

    assert sorted(path.name for path in (baked / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    assert (baked / "onnx" / "model.onnx_data").read_bytes() == (plain / "model.onnx.data").read_bytes()
    assert not list(baked.glob("model*"))
    genai = [json.loads((path / "genai_config.json").read_text(encoding="utf-8")) for path in (baked, plain)]
    assert [one["model"]["decoder"].pop("filename") for one in genai] == ["onnx/model.onnx", "model.onnx"]
    assert genai[0] == genai[1]
    config = json.loads((baked / "config.json").read_text(encoding="utf-8"))
    known = config.pop("transformers.js_config")
    assert known == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    assert config == json.loads((plain / "config.json").read_text(encoding="utf-8"))
    settings = json.loads((baked / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = (baked / "chat_template.jinja").read_text(encoding="utf-8")
    assert template.endswith("{{ messages[0]['content'] }}")
    assert settings.pop("chat_template") == template
    assert settings == json.loads((plain / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert Runner(baked).generate([[40, 41]], 4) == Runner(plain).generate([[40, 41]], 4)


def test_two_data_files_are_numbered(llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    base = copied(llama_export, tmp_path / "base")
    model = onnx.load(base / "model.onnx", load_external_data=False)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.external_data) and tensor.dims[0])
    shutil.copy(base / "model.onnx.data", base / "second.bin")
    next(entry for entry in largest.external_data if entry.key == "location").value = "second.bin"
    onnx.save(model, base / "model.onnx")
    baked = bake(base, tiny_plan, tmp_path / "baked", BakeOptions(runtimes=("transformers.js",))).directory
    assert sorted(path.name for path in baked.glob("onnx/model.onnx_data*")) == ["model.onnx_data", "model.onnx_data_1"]
    config = json.loads((baked / "config.json").read_text(encoding="utf-8"))
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 2}


@pytest.mark.parametrize(
    ("name", "file"),
    [("optimum", "config.json"), ("genai", "config.json"), ("transformers.js", "tokenizer_config.json")],
)
def test_a_file_that_a_runtime_needs(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path, name: RuntimeName, file: str
) -> None:
    base = copied(llama_export, tmp_path / "base")
    (base / file).unlink()
    refused(base, tiny_plan, tmp_path / "baked", name, f"{name} needs .*{file}")


def test_a_newer_opset(llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    base = copied(llama_export, tmp_path / "base")
    model = onnx.load(base / "model.onnx", load_external_data=False)
    model.opset_import[0].version = NEWEST_OPSET + 1
    onnx.save(model, base / "model.onnx")
    refused(base, tiny_plan, tmp_path / "baked", "web", f"up to opset {NEWEST_OPSET}")


def test_genai_is_refused_a_state_that_it_does_not_feed_back(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    """As hybrid models have them, beside keys and values. Without that runtime it gets no configuration for it."""
    base = copied(llama_export, tmp_path / "base")
    model = onnx.load(base / "model.onnx", load_external_data=False)
    past, present = (
        onnx.helper.make_tensor_value_info(name, 1, ["rows", 4, 3]) for name in ("past_conv.0", "present_conv.0")
    )
    model.graph.input.append(past)
    model.graph.output.append(present)
    model.graph.node.append(onnx.helper.make_node("Identity", [past.name], [present.name]))
    onnx.save(model, base / "model.onnx")
    refused(base, tiny_plan, tmp_path / "baked", "genai", "genai feeds back keys and values of every layer alone")
    assert not (bake(base, tiny_plan, tmp_path / "baked").directory / GENAI_CONFIG).exists()


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if not runtime.contributed])
def test_operators_of_onnx_runtime_alone(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path, name: RuntimeName
) -> None:
    base = copied(llama_export, tmp_path / "base")
    model = ir.load(base / "model.onnx")
    sigmoid = next(node for node in model.graph if node.op_type == "Sigmoid")
    sigmoid.domain, sigmoid.op_type = "com.microsoft", "QuickGelu"
    model.opset_imports["com.microsoft"] = 1
    ir.save(model, base / "model.onnx")
    refused(base, tiny_plan, tmp_path / "baked", name, "QuickGelu")


def test_a_checkpoint_is_run_by_none(llama_checkpoint: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="not checkpoints"):
        bake(llama_checkpoint, tiny_plan, tmp_path / "baked", BakeOptions(to="safetensors", runtimes=("web",)))
    assert not (tmp_path / "baked").exists()


def refused(base: Path, plan: Plan, output: Path, name: RuntimeName, reason: str) -> None:
    options = BakeOptions(runtimes=(name,))
    with pytest.raises(BakeoutError, match=reason):
        dry_run(base, plan, options)
    with pytest.raises(BakeoutError, match=reason):
        bake(base, plan, output, options, canary=False)
    assert not output.exists()
