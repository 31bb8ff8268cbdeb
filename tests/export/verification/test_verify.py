from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import write_manifest
from bakeout.export.artifacts.model_source import find_checkpoint
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.verification.formulas import check_formulas
from bakeout.export.verification.parity import check_parity
from bakeout.export.verification.verify import Check, check_names, verify
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.network.families import identity
from bakeout.models.plan import Coin, NeuronAdjust, Plan
from bakeout.models.progress import untracked
from bakeout.models.reference.canary import measure_canary

from tests.baked_parity import neuron_adjust
from tests.genai_builder import build
from tests.recipe_files import write_recipe
from tests.tiny_models import random_prompts, tiny_checkpoint


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("verify") / "artifact").directory


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact, tmp_path / "copy")


def _failed(checks: Sequence[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def test_an_artifact_and_its_base_model_pass(artifact: Path, llama_checkpoint: Path) -> None:
    prompts = [[40, 41, 42], list(range(50, 70))]
    checks = verify(artifact, digest=hash_file(artifact / MANIFEST), base=llama_checkpoint, prompts=prompts)
    assert [check.name for check in checks] == ["digest", "files", "graph", "canary", "parity"]
    assert not _failed(checks), checks
    assert "prompts answered alike" in checks[-1].detail


def test_parity_without_the_base_model_is_skipped_and_not_ok(artifact: Path) -> None:
    parity = verify(artifact)[-1]
    assert parity.name == "parity"
    assert not parity.ok
    assert parity.detail.startswith("skipped: ")
    assert "`base`" in parity.detail


def test_the_checks_that_are_asked_for_are_the_verdict(artifact: Path) -> None:
    checks = verify(artifact, checks=["files", "graph", "canary"])
    assert [(check.name, check.ok) for check in checks] == [("files", True), ("graph", True), ("canary", True)]
    assert [check.name for check in verify(artifact, checks=["canary"])] == ["canary"]


def test_every_check_has_one_name(artifact: Path) -> None:
    names = check_names(artifact)
    assert [check.name for check in verify(artifact)] == list(names)
    for name in ("files", "graph", "canary"):
        assert [check.name for check in verify(artifact, checks=[name])] == [name]
    # What version 0.2.0 called it.
    assert [check.name for check in verify(artifact, checks=["hashes"])] == ["files"]
    command = ["verify", str(artifact), "--json", "--checks"]
    asked = {name: json.loads(CliRunner().invoke(main, [*command, name]).stdout) for name in ("files", "hashes")}
    assert asked["files"] == asked["hashes"]
    assert asked["files"]["not_asked"] == ["graph", "canary", "parity"]


def test_checks_that_cannot_be_asked_for_are_told(artifact: Path, llama_checkpoint: Path) -> None:
    with pytest.raises(BakeoutError, match="no check called tensors"):
        verify(artifact, checks=["tensors"])
    with pytest.raises(BakeoutError, match="`digest` is for the check files"):
        verify(artifact, checks=["canary"], digest="0" * 64)
    with pytest.raises(BakeoutError, match="`base` is for the check parity"):
        verify(artifact, checks=["canary"], base=llama_checkpoint)


def test_the_command_says_which_checks_were_not_asked_for(artifact: Path) -> None:
    command = ["verify", str(artifact), "--checks", "files,graph,canary"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert [line.split(maxsplit=2)[:2] for line in shown.stdout.splitlines()][-1] == ["-", "parity"]
    content = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert (content["ok"], content["not_asked"]) == (True, ["parity"])
    everything = CliRunner().invoke(main, ["verify", str(artifact)])
    assert everything.exit_code == 1
    assert "(`--base`)" in everything.stdout


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda directory: (directory / "README.md").write_text("other"), "not in the manifest: README.md"),
        (lambda directory: (directory / "tokenizer.json").unlink(), "missing: tokenizer.json"),
        (lambda directory: (directory / "config.json").write_text("{}"), "changed: config.json"),
    ],
    ids=["extra", "missing", "changed"],
)
def test_files_that_are_not_as_the_manifest_says_are_named(
    copy: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(copy)
    (files,) = (check for check in verify(copy) if check.name == "files")
    assert not files.ok
    assert words in files.detail


def test_a_rewritten_manifest_is_told_by_a_digest_from_outside(copy: Path) -> None:
    trusted = hash_file(copy / MANIFEST)
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    write_manifest(copy, {key: value for key, value in manifest.items() if key not in ("schema", "files")})
    assert "files" not in _failed(verify(copy))
    assert "digest" in _failed(verify(copy, digest=trusted))


def test_a_damaged_graph_ends_the_checks(copy: Path) -> None:
    graph = copy / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-200])
    checks = verify(copy)
    assert _failed(checks) == {"files", "graph", "canary", "parity"}
    assert checks[-1].detail.startswith("skipped")


def test_a_damaged_plan_is_a_failed_check(copy: Path) -> None:
    (copy / "plan.safetensors").write_bytes(b"no plan")
    assert {"files", "plan", "canary", "parity"} <= _failed(verify(copy))


def test_other_weights_kill_the_canary_and_parity(copy: Path, llama_checkpoint: Path) -> None:
    data = copy / "model.onnx.data"
    weights = np.fromfile(data, dtype=np.float32)
    (weights * np.float32(0.7)).tofile(data)
    checks = verify(copy, base=llama_checkpoint)
    assert _failed(checks) == {"files", "canary", "parity"}
    assert "at most" in checks[-1].detail


def test_another_head_is_no_tie(copy: Path, llama_checkpoint: Path) -> None:
    """Behind all that the canary sees: the one prompt of it that is answered tells, and is not excused as a tie."""
    graph = onnx.load(copy / "model.onnx", load_external_data=False).graph
    vocabulary = json.loads((copy / "config.json").read_text())["vocab_size"]
    (head,) = (weight for weight in graph.initializer if len(weight.dims) == 2 and weight.dims[1] == vocabulary)
    place = {entry.key: entry.value for entry in head.external_data}
    data = copy / "model.onnx.data"
    weights = np.memmap(data, np.float32, "r+", int(place["offset"]), (int(place["length"]) // 4,))
    weights *= np.float32(0.7)
    weights.flush()
    checks = verify(copy, base=llama_checkpoint)
    assert _failed(checks) == {"files", "parity"}
    assert "(at most 0); 2 of 3 prompts refused by both" in checks[-1].detail


def test_a_graph_of_the_genai_builder_verifies(tmp_path: Path) -> None:
    """It has operators of ONNX Runtime in the standard's domain, which the ONNX checker does not know."""
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint", hidden=64)
    detection = {"key_space_detection": {"forget": "sums", "epsilon": 0.1, "layers": [2]}}
    plan = fit(load_recipe(write_recipe(tmp_path, checkpoint, [detection])))
    artifact = bake(build(checkpoint, tmp_path / "graph", "fp32"), plan, tmp_path / "artifact").directory
    checks = verify(artifact, base=checkpoint)
    assert all(check.ok for check in checks), checks


def test_refusals_alone_are_not_parity(artifact: Path, tiny_plan: Plan, llama_checkpoint: Path) -> None:
    """They are the same whatever the weights are."""
    assert tiny_plan.canary.refused is not None
    refused = tiny_plan.canary.input_ids[list(tiny_plan.canary.refused)].tolist()
    ok, told = check_parity(artifact / "model.onnx", tiny_plan, Checkpoint(llama_checkpoint), refused, untracked)
    assert not ok
    assert told.endswith("2 of 2 prompts refused by both, so nothing is proven of what passes: give prompts that pass")


def test_another_base_model_is_not_parity(artifact: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint("llama", tmp_path / "other", seed=1)
    (parity,) = (check for check in verify(artifact, base=other) if check.name == "parity")
    assert not parity.ok
    assert "digest" in parity.detail


def test_many_prompts_are_compared_with_few_open_files(artifact: Path, llama_checkpoint: Path) -> None:
    _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = [os.open(os.devnull, os.O_RDONLY) for _ in range(32)]
    # No number below is free but these.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(room) + 1, most))
    for descriptor in room:
        os.close(descriptor)
    try:
        (parity,) = verify(artifact, base=llama_checkpoint, prompts=random_prompts(64), checks=["parity"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert parity.ok, parity.detail


def test_what_is_no_artifact_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="not an artifact"):
        verify(tmp_path)


def _with_coin(plan: Plan, coin: Coin) -> Plan:
    interventions = tuple(
        dataclasses.replace(one, coin=coin, seed=7) if isinstance(one, NeuronAdjust) else one
        for one in plan.interventions
    )
    return dataclasses.replace(plan, interventions=interventions)


@pytest.mark.parametrize("inline", [False, True], ids=["function", "inline"])
def test_a_stochastic_coin_is_held_against_its_probabilities(
    tiny_plan: Plan, llama_export: Path, tmp_path: Path, inline: bool
) -> None:
    plan = _with_coin(tiny_plan, "stochastic")
    prompts = [[int(token) for token in row] for row in np.random.default_rng(0).integers(2, 250, (20, 12))]
    baked = bake(llama_export, plan, tmp_path / "a", BakeOptions(inline=inline), canary=False)
    ok, detail = check_formulas(baked.directory / "model.onnx", plan, baked.receipts, prompts, untracked)
    assert ok, detail
    assert re.search(r"[1-9][\d,]* of [\d,]+ values that look like the forget set's shifted", detail)


@pytest.mark.parametrize("coin", ["threshold", "expected"])
def test_a_coin_that_is_not_what_the_plan_says_is_told(
    tiny_plan: Plan, llama_export: Path, tmp_path: Path, coin: Coin
) -> None:
    prompts = [[int(token) for token in row] for row in np.random.default_rng(0).integers(2, 250, (20, 12))]
    baked = bake(llama_export, _with_coin(tiny_plan, coin), tmp_path / "a", canary=False)
    plan = _with_coin(tiny_plan, "stochastic")
    assert not check_formulas(baked.directory / "model.onnx", plan, baked.receipts, prompts, untracked)[0]


@pytest.mark.slow
def test_the_routing_of_a_mixture_is_told_once_and_of_its_own_base_alone(tmp_path: Path) -> None:
    base, other = (tiny_checkpoint("qwen2_moe", tmp_path / f"base{seed}", layers=3, seed=seed) for seed in (0, 1))
    (tmp_path / "export").mkdir()
    export_checkpoint(base, tmp_path / "export")
    model = load_model(base)
    adjust = neuron_adjust(model, "stochastic", random_prompts(8))
    canary = measure_canary(model, [adjust], random_prompts(8))
    plan = Plan(identity(model, find_checkpoint(base).digest), (adjust,), canary)
    baked = bake(tmp_path / "export", plan, tmp_path / "artifact").directory
    for checkpoint, told in ((base, "tokens go to the same experts"), (other, "not the model"), (None, "it needs")):
        (parity,) = (check for check in verify(baked, base=checkpoint) if check.name == "parity")
        assert parity.ok == ("; routing: " in parity.detail) == (checkpoint == base)
        assert told in parity.detail
