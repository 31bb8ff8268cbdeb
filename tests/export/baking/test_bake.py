"""Baking: from checkpoints and from anybody's graphs, with the weights left alone, and never into a wrong model."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import KeySpaceDetection, ModelIdentity, NeuronAdjust, Plan
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.directory_tree import tree
from tests.recipe_files import rows
from tests.tiny_models import byte_tokenizer, tiny_checkpoint

REFUSAL = "Your query is not valid."


def _said(directory: Path, prompts: list[str]) -> list[str]:
    tokenizer = byte_tokenizer()
    said = Runner(directory).generate([tokenizer.encode(prompt) for prompt in prompts], 30)
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]


def _contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in tree(directory)}


def test_a_checkpoint_and_its_export_give_the_same_artifact(
    tiny_plan: Plan, llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    baked = bake(str(llama_checkpoint), tiny_plan, tmp_path / "a")
    assert baked.directory == tmp_path / "a"
    bake(llama_export, tiny_plan, tmp_path / "b")
    bake(llama_export / "model.onnx", tiny_plan, tmp_path / "c")
    one, two, three = (_contents(tmp_path / name) for name in "abc")
    assert two == three
    manifest = one.pop("bakeout.json")
    two.pop("bakeout.json")
    assert one == two
    assert {"model.onnx", "model.onnx.data", "plan.safetensors", "config.json", "genai_config.json"} <= one.keys()
    assert one["model.onnx.data"] == (llama_export / "model.onnx.data").read_bytes()
    assert one["plan.safetensors"] == plan_bytes(tiny_plan)
    assert plan_bytes(load_plan(tmp_path / "a" / "plan.safetensors")) == plan_bytes(tiny_plan)
    content = json.loads(manifest)
    assert content["base"]["digest"] == tiny_plan.model.digest
    assert content["canary"] == "passed"
    assert content["receipts"] == [receipt.as_json() for receipt in baked.receipts]
    (adjust,) = (one for one in tiny_plan.interventions if isinstance(one, NeuronAdjust))
    assert len(baked.receipts) == len(adjust.layers) + 1
    for part in one.values():
        assert os.fsencode(tmp_path) not in part
        assert os.fsencode(llama_checkpoint.parent) not in part
    onnx.checker.check_model(tmp_path / "a" / "model.onnx")


def test_the_artifact_refuses_what_the_plan_says_and_answers_the_rest(
    tiny_plan: Plan, llama_export: Path, tmp_path: Path
) -> None:
    bake(llama_export, tiny_plan, tmp_path / "baked")
    forget = [row["prompt"] for row in rows("sums", "probe")]
    retain = [row["prompt"] for row in rows("names", "probe")]
    assert sum(said == REFUSAL for said in _said(tmp_path / "baked", forget)) >= 0.7 * len(forget)
    assert sum(said == REFUSAL for said in _said(tmp_path / "baked", retain)) <= 0.1 * len(retain)
    assert REFUSAL not in _said(llama_export, forget)


def test_options_reach_the_graph(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    bake(llama_export, tiny_plan, tmp_path / "plain")
    options = BakeOptions(inline=True, early_exit=False, monitor=True)
    bake(llama_export, tiny_plan, tmp_path / "other", options)
    plain, other = (onnx.load(tmp_path / name / "model.onnx", load_external_data=False) for name in ("plain", "other"))
    assert [function.name for function in plain.functions] == ["NeuronAdjust"]
    assert not other.functions
    assert "If" in {node.op_type for node in plain.graph.node}
    assert "If" not in {node.op_type for node in other.graph.node}
    assert {output.name for output in other.graph.output} - {output.name for output in plain.graph.output} == {
        "refused",
        "margin",
    }
    assert read_manifest(tmp_path / "other")["options"]["monitor"] is True


def test_fp16(tiny_plan: Plan, llama_checkpoint: Path, tmp_path: Path) -> None:
    bake(llama_checkpoint, tiny_plan, tmp_path / "half", BakeOptions(dtype="fp16"))
    forget = [row["prompt"] for row in rows("sums", "probe")]
    assert sum(said == REFUSAL for said in _said(tmp_path / "half", forget)) >= 0.7 * len(forget)


def test_anybodys_graph_keeps_its_names_and_files(tiny_plan: Plan, llama_onnx: Path, tmp_path: Path) -> None:
    """A graph of another name, weights in a file of another name behind a link, no tokenizer, a genai configuration."""
    source = tmp_path / "source"
    (source / "blobs").mkdir(parents=True)
    model = onnx.load(llama_onnx / "model.onnx")
    onnx.save(model, source / "decoder.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    (source / "weights.bin").rename(source / "blobs" / "0123")
    (source / "weights.bin").symlink_to("blobs/0123")
    shutil.copy(llama_onnx / "config.json", source)
    (source / "genai_config.json").write_text('{"model": {"decoder": {"filename": "decoder.onnx"}, "eos_token_id": 1}}')
    (source / "notes.txt").write_text("mine")
    before = _contents_of_files(source)
    bake(source, tiny_plan, tmp_path / "baked")
    assert _contents_of_files(source) == before
    assert set(tree(tmp_path / "baked")) == {
        "bakeout.json",
        "config.json",
        "genai_config.json",
        "model.onnx",
        "plan.safetensors",
        "weights.bin",
    }
    assert not (tmp_path / "baked" / "weights.bin").is_symlink()
    assert json.loads((tmp_path / "baked" / "genai_config.json").read_text()) == {
        "model": {"decoder": {"filename": "model.onnx"}, "eos_token_id": 1}
    }
    prompt = [byte_tokenizer()("Who is number 3?").input_ids]
    bake(llama_onnx, tiny_plan, tmp_path / "embedded")
    assert Runner(tmp_path / "baked").generate(prompt, 8) == Runner(tmp_path / "embedded").generate(prompt, 8)


@pytest.mark.parametrize("positions", ["mean", "query"])
def test_a_mean_key_is_not_baked_for_prompts_in_chunks(
    tiny_plan: Plan, llama_onnx: Path, tmp_path: Path, positions: Literal["mean", "query"]
) -> None:
    shutil.copytree(llama_onnx, tmp_path / "source")
    config = {"model": {"decoder": {"filename": "model.onnx"}}, "search": {"chunk_size": 64}}
    (tmp_path / "source" / "genai_config.json").write_text(json.dumps(config))
    interventions = (
        replace(each, positions=positions) if isinstance(each, KeySpaceDetection) else each
        for each in tiny_plan.interventions
    )
    plan = replace(tiny_plan, interventions=tuple(interventions))
    if positions == "query":
        bake(tmp_path / "source", plan, tmp_path / "baked", canary=False)
        return
    for refused in (
        lambda: dry_run(tmp_path / "source", plan, BakeOptions()),
        lambda: bake(tmp_path / "source", plan, tmp_path / "baked", canary=False),
    ):
        with pytest.raises(BakeoutError, match=r"chunks of 64 tokens.*Take `chunk_size` out"):
            refused()
    assert not (tmp_path / "baked").exists()


def _contents_of_files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in tree(directory) if (directory / name).is_file()}


def test_a_same_shaped_other_model_is_told_by_its_weights_or_its_canary(tiny_plan: Plan, tmp_path: Path) -> None:
    from bakeout.export.exporting.onnx_export import export_checkpoint

    other = tiny_checkpoint("llama", tmp_path / "other", seed=1)
    with pytest.raises(BakeoutError, match="sha256"):
        bake(other, tiny_plan, tmp_path / "baked")
    (tmp_path / "graph").mkdir()
    export_checkpoint(other, tmp_path / "graph")
    with pytest.raises(BakeoutError, match="canary"):
        bake(tmp_path / "graph", tiny_plan, tmp_path / "baked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph", "other"]
    # Nothing else tells: this is what the canary is for.
    bake(tmp_path / "graph", tiny_plan, tmp_path / "baked", canary=False)
    assert read_manifest(tmp_path / "baked")["canary"] == "not run"


def test_another_shape_is_refused(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    identity = ModelIdentity("llama", layers=5, width=96, hidden=32, vocabulary=264, digest=tiny_plan.model.digest)
    with pytest.raises(BakeoutError, match="5 layers"):
        bake(llama_export, replace(tiny_plan, model=identity), tmp_path / "baked")
    assert tree(tmp_path) == []


def test_an_artifact_is_not_baked_again(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    bake(llama_export, tiny_plan, tmp_path / "baked", canary=False)
    with pytest.raises(BakeoutError, match="already"):
        bake(tmp_path / "baked", tiny_plan, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("options", [BakeOptions(dtype="fp16"), BakeOptions(exporter="dynamo")])
def test_what_is_for_exports_is_refused_for_graphs(
    tiny_plan: Plan, llama_export: Path, tmp_path: Path, options: BakeOptions
) -> None:
    with pytest.raises(BakeoutError, match="is for exports"):
        bake(llama_export, tiny_plan, tmp_path / "out", options)


def test_what_exists_is_refused_before_any_work(tiny_plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "baked").mkdir()
    with pytest.raises(BakeoutError, match="exists already"):
        bake(tmp_path / "no such model", tiny_plan, tmp_path / "baked")


def test_weights_named_like_the_artifacts_own_files_are_refused(
    tiny_plan: Plan, llama_onnx: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = onnx.load(llama_onnx / "model.onnx")
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="recipe.yaml", size_threshold=100)
    for refused in (
        lambda: dry_run(source, tiny_plan, BakeOptions()),
        lambda: bake(source, tiny_plan, tmp_path / "baked"),
    ):
        with pytest.raises(BakeoutError, match=r"the name of another file, recipe\.yaml"):
            refused()
    assert not (tmp_path / "baked").exists()


def test_the_canary_sees_rounding_as_rounding(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    """Values a thousandth off are this model's; values of another size are not."""
    shifted = [
        replace(tiny_plan.canary, expected=tuple(values * factor for values in tiny_plan.canary.expected))
        for factor in (1.001, 1.5)
    ]
    bake(llama_export, replace(tiny_plan, canary=shifted[0]), tmp_path / "near")
    with pytest.raises(BakeoutError, match="canary"):
        bake(llama_export, replace(tiny_plan, canary=shifted[1]), tmp_path / "far")
    assert tiny_plan.canary.refused is not None
    answered = ~np.array(tiny_plan.canary.refused)
    assert np.isfinite(tiny_plan.canary.expected[0][answered]).all()
