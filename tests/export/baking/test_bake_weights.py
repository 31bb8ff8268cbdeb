"""Weight edits baked into ONNX artifacts, alone and with the interventions that act on what the graph computes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run, lines
from bakeout.export.baking.model_card import model_card
from bakeout.export.cli.main import main
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import (
    AdjustedLayer,
    Cubes,
    Intervention,
    KeySpaceDetection,
    NeuronAdjust,
    Plan,
    PlanError,
)
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjustReport
from bakeout.models.plan.kinds.report import RetainReport
from bakeout.models.plan.kinds.zero_columns import ZeroColumnsReport
from bakeout.models.plan.plan_file import save_plan
from bakeout.models.reference.canary import measure_canary
from bakeout.models.reference.weight_edits import edited_weights

from tests.tiny_models import END_OF_TEXT_ID, byte_tokenizer, tiny_checkpoint
from tests.weight_plans import PROMPTS, low_rank_update, plan_of, zero_columns


def _adjust() -> NeuronAdjust:
    """The last layer's neurons among them, whose pre-activations are the weights' canary."""
    ones = np.ones(3)
    neurons = np.array([1, 5, 80])
    return NeuronAdjust(
        "threshold",
        tuple(AdjustedLayer(layer, neurons, 0.5 * ones, ones, -2 * ones, 1.3 * ones) for layer in (0, 3)),
        report=NeuronAdjustReport(forget=("sums",), retain=("names",), ratio=0.01),
    )


def _everything(checkpoint: Path) -> Plan:
    """A weight edit, then Neuron Adjust, then a check that refuses half the prompts of the edited model."""
    model = load_model(checkpoint)
    edits: list[Intervention] = [low_rank_update(model), zero_columns(3), _adjust()]
    with edited_weights(model, edits):
        keys = dict(probe_keys(model, PROMPTS, layers=[2], batch_size=8))[2].astype(np.float64)
        cube = Cubes(keys.mean(axis=0)[None], keys.std(axis=0)[None])
        check = KeySpaceDetection((2,), cube, np.ones(1), ("sums",), np.array([40, 41, END_OF_TEXT_ID]))
        check = replace(check, alpha=np.array([np.median(check.margins(keys))]))
    return plan_of(model, weights_digest(checkpoint), *edits, check)


def test_weights_neurons_and_a_check_stand_in_one_artifact(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    plan = _everything(llama_checkpoint)
    baked = bake(llama_export, plan, tmp_path / "baked")
    assert [receipt.kind for receipt in baked.receipts] == [
        *["low_rank_update"] * 6,
        "zero_columns",
        *["neuron_adjust"] * 2,
        "key_space_detection",
    ]
    checks = verify(baked.directory, base=llama_checkpoint, prompts=PROMPTS)
    assert [(check.name, check.ok) for check in checks] == [
        (name, True) for name in ("files", "graph", "canary", "parity")
    ], checks
    assert read_manifest(baked.directory)["canary"] == "passed"


def test_a_checkpoint_is_exported_and_edited(llama_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model))
    directory = bake(llama_checkpoint, plan, tmp_path / "baked", BakeOptions(dtype="fp16")).directory
    checks = verify(directory, base=llama_checkpoint, prompts=PROMPTS)
    assert all(check.ok for check in checks), checks
    assert {receipt["detail"]["dtype"] for receipt in read_manifest(directory)["receipts"]} == {"float16"}


def test_weights_inside_the_graphs_own_file_are_edited(
    llama_checkpoint: Path, llama_onnx: Path, tmp_path: Path
) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model, roles=["up"]))
    before = hash_file(llama_onnx / "model.onnx")
    directory = bake(llama_onnx, plan, tmp_path / "baked").directory
    assert hash_file(llama_onnx / "model.onnx") == before
    assert all(check.ok for check in verify(directory, base=llama_checkpoint, prompts=PROMPTS))


def test_the_canary_tells_a_same_shaped_model_of_other_weights(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, "ab" * 32, zero_columns(1))
    wrong = tmp_path / "wrong"
    shutil.copytree(llama_export, wrong)
    weights = np.fromfile(wrong / "model.onnx.data", dtype=np.float32)
    np.random.default_rng(0).permutation(weights).tofile(wrong / "model.onnx.data")
    with pytest.raises(PlanError, match=r"canary does not match.*zero_columns"):
        bake(wrong, plan, tmp_path / "baked")
    # So does a canary that was measured on a model without the edits.
    edit = low_rank_update(model)
    unedited = replace(plan_of(model, "ab" * 32, edit), canary=measure_canary(model, [edit], PROMPTS))
    with pytest.raises(PlanError, match=r"canary does not match.*low_rank_update"):
        bake(llama_export, unedited, tmp_path / "baked")
    bake(llama_export, plan, tmp_path / "baked")


def test_the_same_plan_gives_the_same_bytes_anywhere(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    plan = _everything(llama_checkpoint)
    shutil.copytree(llama_export, tmp_path / "elsewhere" / "copy")
    bake(llama_export, plan, tmp_path / "one")
    bake(tmp_path / "elsewhere" / "copy", plan, tmp_path / "elsewhere" / "two")
    made = [
        {path.name: hash_file(path) for path in directory.iterdir()}
        for directory in (tmp_path / "one", tmp_path / "elsewhere" / "two")
    ]
    assert made[0] == made[1]


def test_a_dry_run_of_a_graph_tells_the_receipts_and_writes_nothing(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    plan = _everything(llama_checkpoint)
    before = sorted(llama_export.iterdir())
    found = dry_run(llama_export, plan, BakeOptions())
    assert sorted(llama_export.iterdir()) == before
    assert tuple(found.receipts) == bake(llama_export, plan, tmp_path / "baked").receipts
    assert not found.exports


def test_a_dry_run_refuses_slots_where_baking_does(llama_checkpoint: Path, llama_export: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model))
    slots = BakeOptions(adapter_slots=True)
    with pytest.raises(PlanError) as refused:
        bake(llama_export, plan, tmp_path / "baked", slots)
    with pytest.raises(PlanError, match=re.escape(str(refused.value))):
        dry_run(llama_export, plan, slots)


def test_a_dry_run_of_a_checkpoint_does_not_export_it(llama_checkpoint: Path, tmp_path: Path) -> None:
    plan = _everything(llama_checkpoint)
    found = dry_run(llama_checkpoint, plan, BakeOptions())
    assert found.exports
    assert [(receipt.kind, receipt.layer, receipt.count) for receipt in found.receipts[-3:]] == [
        ("neuron_adjust", 0, 3),
        ("neuron_adjust", 3, 3),
        ("key_space_detection", 2, 1),
    ]
    assert found.receipts[0].detail["norm_asked"] > 0
    by_dynamo = dry_run(llama_checkpoint, plan, BakeOptions(exporter="dynamo"))
    assert any("first, by dynamo" in line for line in lines(by_dynamo))


def test_a_dry_run_refuses_an_exporter_where_baking_does(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("ernie4_5", tmp_path / "checkpoint", layers=2)
    model = load_model(checkpoint)
    plan = plan_of(model, weights_digest(checkpoint), zero_columns(1))
    assert dry_run(checkpoint, plan, BakeOptions()).exporter == "dynamo"
    with pytest.raises(BakeoutError, match="optimum cannot export ernie4_5"):
        dry_run(checkpoint, plan, BakeOptions(exporter="optimum"))


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


def test_the_command_line_bakes_verifies_and_inspects_a_checkpoint(
    llama_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model, layers=[1], roles=["down"]))
    save_plan(plan, tmp_path / "plan.safetensors")
    command = ["bake", str(llama_checkpoint), str(tmp_path / "plan.safetensors"), "--to", "safetensors"]
    text = _run([*command, "--dry-run"], capsys)
    assert "model.layers.1.mlp.down_proj.weight" in text
    assert "disk" in text and "memory" in text
    dry = json.loads(_run([*command, "--dry-run", "--json"], capsys))
    assert dry.keys() == {"schema", "dry_run", "receipts", "disk", "memory", "exports"}
    output = tmp_path / "baked"
    assert not output.exists()
    baked = json.loads(_run([*command, "-o", str(output), "--json"], capsys))
    assert baked["receipts"] == dry["receipts"]
    verified = json.loads(_run(["verify", str(output), "--base", str(llama_checkpoint), "--json"], capsys))
    assert verified["ok"]
    assert "rank 2" in _run(["inspect", str(output)], capsys)


def test_the_output_is_needed_unless_nothing_is_written(
    llama_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bake", str(llama_checkpoint), str(tmp_path / "plan.safetensors")])
    assert ended.value.code == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["onnx", "checkpoint"])
def test_the_card_says_what_edited_weights_do_and_do_not_protect_against(form: str, llama_checkpoint: Path) -> None:
    model = load_model(llama_checkpoint)
    update = replace(low_rank_update(model, layers=[1]), method="lunar", report=RetainReport(forget=("people",)))
    plan = plan_of(model, "ab" * 32, update, replace(zero_columns(2), report=ZeroColumnsReport(forget=("math",))))
    card = model_card(plan, [], byte_tokenizer(), form=form)  # type: ignore[arg-type]
    assert "# llama without people, math\n" in card
    assert "### 1. LUNAR\n" in card
    assert "| layer 1, down | rank 2 |" in card
    assert "### 2. Zeroed columns" in card
    limits = card.split("## Limits")[1].split("##")[0]
    assert "Quantising can bring back" in limits
    assert "fine-tuning" in limits
    assert "added nodes" not in limits
    assert ("AutoModelForCausalLM" in card, "optimum" in card) == (form == "checkpoint", form == "onnx")
    assert "{{" not in card and "\n\n\n" not in card


def test_the_card_of_all_kinds_tells_the_two_limits_apart(llama_checkpoint: Path) -> None:
    card = model_card(_everything(llama_checkpoint), [], byte_tokenizer())
    limits = card.split("## Limits")[1].split("##")[0]
    assert "What is removed by Neuron Adjust and Key Space Detection is still in the weights" in limits
    assert "Quantising" in limits


def test_the_graph_of_an_artifact_is_valid(llama_checkpoint: Path, llama_export: Path, tmp_path: Path) -> None:
    directory = bake(llama_export, _everything(llama_checkpoint), tmp_path / "baked").directory
    onnx.checker.check_model(str(directory / "model.onnx"), full_check=True)
