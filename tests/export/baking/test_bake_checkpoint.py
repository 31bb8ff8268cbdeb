"""Checkpoints with edited weights: loaded by ``transformers``, bit for bit what torch would make of the base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.evaluation.evaluate import evaluate
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan, PlanError, WeightUpdate
from bakeout.models.reference.weight_edits import apply_weight_edit

from tests.recipe_files import rows, write_rows
from tests.tiny_models import byte_tokenizer, tiny_model
from tests.weight_plans import low_rank_update, plan_of, zero_columns

TO = BakeOptions(to="safetensors")
# Gated, fused, Conv1D, norm after down, tied embeddings.
QUICK = ("llama", "phi3", "gpt2", "gemma2", "opt")
SLOW = (
    "falcon",
    "gemma",
    "gpt_bigcode",
    "gpt_neox",
    "granite",
    "mistral",
    "olmo2",
    "phi",
    "qwen2",
    "qwen3",
    "stablelm",
)


def _checkpoint(
    directory: Path, family: str = "llama", dtype: str = "float32", shard: str = "5GB", seed: int = 0
) -> Path:
    tiny_model(family, dtype=dtype, seed=seed).save_pretrained(directory, max_shard_size=shard)
    byte_tokenizer().save_pretrained(directory)
    return directory


def _plan(checkpoint: Path, **options: object) -> Plan:
    model = load_model(checkpoint)
    update = low_rank_update(model, **options)  # type: ignore[arg-type]
    return plan_of(model, weights_digest(checkpoint), update, zero_columns(1, 2))


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                yield name, file.get_tensor(name)


def _require_equals_torch(checkpoint: Path, plan: Plan, directory: Path) -> None:
    dtype = next(_tensors(checkpoint))[1].dtype
    named: Any = str(dtype).removeprefix("torch.")
    expected = load_model(checkpoint, Placement("cpu", named))
    for edit in plan.interventions:
        apply_weight_edit(expected, edit)
    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
    found, loading = loaded
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert found.dtype == dtype
    weights = found.state_dict()
    for name, weight in expected.state_dict().items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW)])
def test_transformers_loads_what_torch_would_have_made(family: str, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", family)
    plan = _plan(checkpoint)
    bake(checkpoint, plan, tmp_path / "baked", TO)
    _require_equals_torch(checkpoint, plan, tmp_path / "baked")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_half_precision_stays_and_rounds_as_torch_does(family: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", family, dtype)
    plan = _plan(checkpoint)
    baked = bake(checkpoint, plan, tmp_path / "baked", TO)
    assert {receipt.detail["dtype"] for receipt in baked.receipts} == {dtype}
    _require_equals_torch(checkpoint, plan, tmp_path / "baked")


def test_what_is_for_graphs_is_neither_taken_nor_recorded(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", dtype="bfloat16")
    plan = _plan(checkpoint)
    asked = BakeOptions(to="safetensors", dtype="fp16", monitor=True)
    for run in (lambda: bake(checkpoint, plan, tmp_path / "baked", asked), lambda: dry_run(checkpoint, plan, asked)):
        with pytest.raises(BakeoutError, match="`dtype`: a checkpoint keeps its type"):
            run()
    bake(checkpoint, plan, tmp_path / "baked", TO)
    recorded = read_manifest(tmp_path / "baked")["options"]
    assert (recorded["dtype"], recorded["exporter"], recorded["monitor"]) == (None, None, False)


def test_shards_without_an_edit_are_copied_as_they_are(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", shard="40KB")
    plan = plan_of(load_model(checkpoint), weights_digest(checkpoint), zero_columns(2))
    (receipt,) = bake(checkpoint, plan, tmp_path / "baked", TO).receipts
    shards = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    assert len(shards) > 3
    changed = [name for name in shards if hash_file(checkpoint / name) != hash_file(tmp_path / "baked" / name)]
    assert changed == [receipt.node]
    index = "model.safetensors.index.json"
    assert (tmp_path / "baked" / index).read_bytes() == (checkpoint / index).read_bytes()
    _require_equals_torch(checkpoint, plan, tmp_path / "baked")


def test_shards_edited_and_hashed_side_by_side_are_as_the_manifest_says(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", shard="40KB")
    plan = _plan(checkpoint)
    receipts = bake(checkpoint, plan, tmp_path / "baked", TO).receipts
    assert len({receipt.node for receipt in receipts}) > 3
    files = read_manifest(tmp_path / "baked")["files"]
    for path in (tmp_path / "baked").glob("*.safetensors"):
        assert files[path.name]["sha256"] == hash_file(path)
    _require_equals_torch(checkpoint, plan, tmp_path / "baked")


def test_nothing_but_the_edited_tensors_changes(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base")
    plan = _plan(checkpoint, layers=[3], roles=["gate"])
    receipts = bake(checkpoint, plan, tmp_path / "baked", TO).receipts
    before, after = dict(_tensors(checkpoint)), dict(_tensors(tmp_path / "baked"))
    assert list(before) == list(after)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {r.tensor for r in receipts}
    header = [(directory / "model.safetensors").read_bytes()[:4000] for directory in (checkpoint, tmp_path / "baked")]
    length = 8 + int.from_bytes(header[0][:8], "little")
    assert header[0][:length] == header[1][:length]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", "gemma")
    assert "lm_head.weight" not in dict(_tensors(checkpoint))
    plan = _plan(checkpoint)
    bake(checkpoint, plan, tmp_path / "baked", TO)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _require_equals_torch(checkpoint, plan, tmp_path / "baked")


def test_a_checkpoint_saved_without_its_head_is_edited(tmp_path: Path) -> None:
    """The hub's GPT-2 calls its tensors ``h.0.mlp…``, not ``transformer.h.0.mlp…``."""
    headless: Any = tiny_model("gpt2").transformer
    headless.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    plan = plan_of(model, weights_digest(tmp_path / "base"), low_rank_update(model))
    bake(tmp_path / "base", plan, tmp_path / "baked", TO)
    apply_weight_edit(model, plan.interventions[0])
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items() if ".h." in name)


def test_weights_that_nobody_loads_are_left_out(tmp_path: Path) -> None:
    """A second copy of the weights under another name would carry on what was forgotten."""
    checkpoint = _checkpoint(tmp_path / "base")
    shutil.copyfile(checkpoint / "model.safetensors", checkpoint / "consolidated.safetensors")
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickled")
    plan = _plan(checkpoint)
    bake(checkpoint, plan, tmp_path / "baked", TO)
    assert sorted(path.name for path in (tmp_path / "baked").iterdir()) == [
        "README.md",
        "bakeout.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "plan.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_same_plan_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", shard="40KB")
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "copy")
    plan = _plan(checkpoint)
    bake(checkpoint, plan, tmp_path / "one", TO)
    bake(tmp_path / "elsewhere" / "copy", plan, tmp_path / "elsewhere" / "two", TO)
    made = [
        {path.name: hash_file(path) for path in directory.iterdir()}
        for directory in (tmp_path / "one", tmp_path / "elsewhere" / "two")
    ]
    assert made[0] == made[1]


def test_receipts_stand_in_the_manifest_and_are_shown(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", dtype="bfloat16")
    plan = _plan(checkpoint, layers=[1], roles=["down"])
    baked = bake(checkpoint, plan, tmp_path / "baked", TO)
    update, first, second = baked.receipts
    assert read_manifest(tmp_path / "baked")["receipts"] == [receipt.as_json() for receipt in baked.receipts]
    assert (update.count, update.tensor, update.node) == (2, "model.layers.1.mlp.down_proj.weight", "model.safetensors")
    # Two edits of one tensor, one after the other.
    assert first.tensor == update.tensor and first.before == update.after
    assert second.tensor == "model.layers.2.mlp.down_proj.weight"
    weight = dict(_tensors(checkpoint))[update.tensor].double().numpy()
    change = plan.interventions[0].weight_changes()[0]
    assert isinstance(change, WeightUpdate)
    asked = change.left.astype(float) @ change.right.astype(float)
    assert update.detail["norm_before"] == pytest.approx(np.linalg.norm(weight), rel=1e-5)
    assert update.detail["norm_asked"] == pytest.approx(np.linalg.norm(asked), rel=1e-5)
    assert update.detail["norm_realised"] != update.detail["norm_asked"]
    assert 0.9 < update.detail["share_realised"] < 1.1
    text = "\n".join(lines(inspect(tmp_path / "baked")))
    assert "Low-rank update by random: 1 weight" in text
    assert "Zeroed columns: 8 neurons in 2 layers" in text
    assert f"change asked {update.detail['norm_asked']:.4g}, realised {update.detail['norm_realised']:.4g}" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_artifact_is_verified_and_a_changed_one_is_not(dtype: str, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", dtype=dtype)
    plan = _plan(checkpoint)
    directory = bake(checkpoint, plan, tmp_path / "baked", TO).directory
    checks = verify(directory, base=checkpoint, prompts=[[5, 6, 7, 8]])
    assert [(check.name, check.ok) for check in checks] == [
        (name, True) for name in ("files", "tensors", "canary", "parity")
    ], checks
    # The base model's weights under the artifact's name: nothing is forgotten, and every check says so.
    shutil.copyfile(checkpoint / "model.safetensors", directory / "model.safetensors")
    assert [check.ok for check in verify(directory, base=checkpoint)] == [False] * 4
    manifest = json.loads((directory / "bakeout.json").read_text())
    for receipt in manifest["receipts"]:
        receipt["after"] = receipt["before"]
    (directory / "bakeout.json").write_text(json.dumps(manifest))
    parity = verify(directory, base=checkpoint)[-1]
    assert not parity.ok


def test_parity_is_skipped_without_the_base_model(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base")
    bake(checkpoint, _plan(checkpoint), tmp_path / "baked", TO)
    assert verify(tmp_path / "baked")[-1].detail.startswith("skipped")


def test_an_artifact_is_evaluated_as_its_base_model_is(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base")
    bake(checkpoint, _plan(checkpoint), tmp_path / "baked", TO)
    data = write_rows(tmp_path / "sums.jsonl", rows("sums", "test"))
    found = evaluate([tmp_path / "baked"], [data], base=checkpoint).rows
    assert [(row.model, row.data, row.prompts) for row in found] == [
        ("base", "sums", 6),
        ("baked", "sums", 6),
    ]


def test_a_dry_run_tells_the_receipts_and_writes_nothing(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", shard="40KB")
    plan = _plan(checkpoint)
    before = sorted(tmp_path.rglob("*"))
    found = dry_run(checkpoint, plan, TO)
    assert sorted(tmp_path.rglob("*")) == before
    directory = bake(checkpoint, plan, tmp_path / "baked", TO).directory
    assert [receipt.as_json() for receipt in found.receipts] == read_manifest(directory)["receipts"]
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert size <= found.disk


def test_what_no_weight_can_express_is_refused(tmp_path: Path, tiny_plan: Plan, llama_checkpoint: Path) -> None:
    with pytest.raises(BakeoutError, match=r"Neuron Adjust.*no weight can express.*`to: onnx`"):
        bake(llama_checkpoint, tiny_plan, tmp_path / "baked", TO)
    assert not (tmp_path / "baked").exists()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    plan = _plan(_checkpoint(tmp_path / "base"))
    with pytest.raises(PlanError, match="sha256"):
        bake(_checkpoint(tmp_path / "other", seed=1), plan, tmp_path / "baked", TO)


def test_an_artifact_and_a_graph_are_refused(tmp_path: Path, llama_onnx: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base")
    plan = _plan(checkpoint)
    bake(checkpoint, plan, tmp_path / "baked", TO)
    with pytest.raises(BakeoutError, match="is an artifact"):
        bake(tmp_path / "baked", plan, tmp_path / "again", TO)
    with pytest.raises(BakeoutError, match="is an ONNX graph"):
        bake(llama_onnx, plan, tmp_path / "again", TO)


def test_a_change_that_rounds_away_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base", dtype="bfloat16")
    model = load_model(checkpoint)
    plan = plan_of(model, weights_digest(checkpoint), low_rank_update(model, scale=1e-4))
    with pytest.raises(BakeoutError, match=r"rounds away in bfloat16.*%"):
        bake(checkpoint, plan, tmp_path / "baked", TO)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    # The same change is one in float32.
    wide = _checkpoint(tmp_path / "wide")
    bake(wide, plan_of(model, weights_digest(wide), *plan.interventions), tmp_path / "baked", TO)


def test_a_plan_of_neurons_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "base")
    config = json.loads((checkpoint / "config.json").read_text())
    plan = _plan(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "mixtral"}))
    with pytest.raises(BakeoutError, match="'mixtral'"):
        bake(checkpoint, plan, tmp_path / "baked", TO)
    (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 8}}))
    with pytest.raises(BakeoutError, match="quantised"):
        bake(checkpoint, plan, tmp_path / "baked", TO)
