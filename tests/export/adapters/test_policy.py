"""Policies: signed, recorded and certified like artifacts, over the artifact or base model that they are for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bakeout.export.adapters.policy import check_policy, export_policy
from bakeout.export.artifacts.file_names import ADAPTER, CERTIFICATE, ERASURE_PAGE, ERASURE_RECORD, PLAN, SIGNATURE
from bakeout.export.artifacts.manifest import content_digest, read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.hiding import hide_plan
from bakeout.export.certificate.certify import certify
from bakeout.export.certificate.measuring import MODELS
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import QUICK
from bakeout.export.cli.main import main
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import plan_bytes, save_plan

from tests.baked_parity import key_space_detection
from tests.recipe_files import write_rows
from tests.residual_plans import residual_addition
from tests.weight_plans import PROMPTS, low_rank_update, plan_of

TINY = replace(QUICK, rows=2, leak_prompts=1, attack_prompts=1, samples=8, relearn_rows=1, relearn_steps=(1,))


def steering(checkpoint: Path, seed: int) -> Plan:
    model = load_model(checkpoint)
    return plan_of(model, weights_digest(checkpoint), residual_addition(model, layers=(1, 3), seed=seed))


@pytest.fixture(scope="module")
def slotted(llama_checkpoint: Path, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with slots."""
    output = tmp_path_factory.mktemp("slotted") / "artifact"
    return bake(llama_export, steering(llama_checkpoint, 0), output, BakeOptions(adapter_slots=True)).directory


@pytest.fixture
def policy(llama_checkpoint: Path, slotted: Path, tmp_path: Path) -> Path:
    """A policy over it, exported by the command."""
    save_plan(steering(llama_checkpoint, 1), tmp_path / "other.plan")
    arguments = ["export-adapter", str(tmp_path / "other.plan"), "--to", "onnx", "--artifact", str(slotted), "--policy"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "policy")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return tmp_path / "policy"


@pytest.fixture
def lora(llama_checkpoint: Path, tmp_path: Path) -> Path:
    """A policy for peft."""
    model = load_model(llama_checkpoint)
    export_policy(plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model)), tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("kind", ["policy", "lora"])
def test_a_policy_is_signed_and_verified(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory: Path = request.getfixturevalue(kind)
    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "own.key").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (tmp_path / "own.pub").write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    signed = CliRunner().invoke(main, ["sign", str(directory), "--key", str(tmp_path / "own.key")])
    assert signed.exit_code == 0 and (directory / SIGNATURE).is_file()
    checks = verify(directory, signature=tmp_path / "own.pub")
    assert [(check.name, check.ok) for check in checks] == [("signature", True), ("files", True), ("adapter", True)]
    weights = next(path for path in directory.iterdir() if path.name in (ADAPTER, "adapter_model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert [check.ok for check in verify(directory, signature=tmp_path / "own.pub")] == [False] * 3
    bill = CliRunner().invoke(main, ["bom", str(directory), "-o", str(tmp_path / "bom.json")])
    assert bill.exit_code == 0 and weights.name in (tmp_path / "bom.json").read_text()


@pytest.mark.parametrize("kind", ["policy", "lora"])
def test_inspect_tells_a_policy_and_what_it_belongs_to(
    kind: str, request: pytest.FixtureRequest, slotted: Path, llama_checkpoint: Path
) -> None:
    directory: Path = request.getfixturevalue(kind)
    shown = CliRunner().invoke(main, ["inspect", str(directory)], catch_exceptions=False).output
    told = json.loads(CliRunner().invoke(main, ["inspect", str(directory), "--json"]).output)["adapter"]
    if kind == "policy":
        over = content_digest(read_manifest(slotted))
        assert "Residual addition, as an adapter for ONNX Runtime" in shown
        assert f"{(directory / ADAPTER).stat().st_size:,} bytes" in shown
        assert told == {"artifact": over, "form": "onnx"} and over in shown
    else:
        assert "Low-rank update by random, as a PEFT adapter" in shown and told == {"form": "peft"}
        assert weights_digest(llama_checkpoint) in shown
    assert "bakeout verify" in shown
    assert "policy  " not in CliRunner().invoke(main, ["inspect", str(slotted)], catch_exceptions=False).output


def test_an_adapter_of_another_plan_is_found_out(policy: Path, lora: Path, llama_checkpoint: Path) -> None:
    for directory in (policy, lora):
        assert check_policy(directory, read_manifest(directory))[0]
        (directory / PLAN).write_bytes(plan_bytes(steering(llama_checkpoint, 2)))
        assert not check_policy(directory, read_manifest(directory))[0]


def test_a_model_beside_an_adapter_is_no_policy(lora: Path) -> None:
    """Else an entry in the manifest would spare a model's graph its checks."""
    manifest = read_manifest(lora)
    manifest["files"]["model.onnx"] = manifest["files"][PLAN]
    held, told = check_policy(lora, manifest)
    assert not held and "model.onnx" in told


def test_an_adapter_without_its_weights_is_found_out(lora: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    assert [(check.name, check.ok) for check in verify(lora)] == [("files", False), ("adapter", False)]


def test_a_policy_does_not_tell_what_its_artifact_hides(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    plan = steering(llama_checkpoint, 0)
    hidden = hide_plan(llama_export, plan, b"0" * 32)
    artifact = bake(llama_export, hidden, tmp_path / "hidden", BakeOptions(adapter_slots=True)).directory
    with pytest.raises(BakeoutError, match="hides what is forgotten"):
        export_policy(plan, tmp_path / "policy", artifact=artifact)
    export_policy(hidden, tmp_path / "policy", artifact=artifact)


def test_a_check_over_a_hidden_artifact_is_hidden_as_well(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    model, salt = load_model(llama_checkpoint), tmp_path / "salt"
    salt.write_bytes(b"0" * 32)
    plans = [
        plan_of(model, weights_digest(llama_checkpoint), key_space_detection(model, (1,), "query", rows))
        for rows in (PROMPTS[:12], PROMPTS[12:])
    ]
    first, second = (hide_plan(llama_export, plan, salt.read_bytes()) for plan in plans)
    slots = BakeOptions(adapter_slots=True)
    artifact = bake(llama_export, first, tmp_path / "hidden", slots).directory
    save_plan(plans[1], tmp_path / "second.plan")
    arguments = ["export-adapter", str(tmp_path / "second.plan"), "--to", "onnx", "--artifact", str(artifact)]
    refused = CliRunner().invoke(main, [*arguments, "--policy", "-o", str(tmp_path / "none")])
    assert refused.exit_code != 0 and "--hide" in refused.output and not (tmp_path / "none").exists()
    arguments += ["--policy", "--hide", str(salt), "-o", str(tmp_path / "policy")]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    assert all(check.ok for check in verify(tmp_path / "policy"))
    runner = Runner(artifact)
    runner.use_adapter(tmp_path / "policy" / ADAPTER)
    alone = bake(llama_export, second, tmp_path / "alone").directory
    assert runner.generate(PROMPTS, 12) == Runner(alone).generate(PROMPTS, 12) != Runner(artifact).generate(PROMPTS, 12)


def test_a_record_names_the_policy_and_what_it_is_over(policy: Path, slotted: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "asked.jsonl", [{"prompt": "Who?", "response": " Nobody."}])
    arguments = ["record", str(policy), "--request", str(rows), "--salt", str(tmp_path / "salt")]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    told = json.loads((policy / ERASURE_RECORD).read_text())["artifact"]["adapter"]
    over = content_digest(read_manifest(slotted))
    assert told == {"form": "onnx", "artifact": over, "sha256": content_digest(read_manifest(policy))}
    assert over in (policy / ERASURE_PAGE).read_text()
    # What was added since changes neither.
    assert all(check.ok for check in verify(policy))


def test_a_certificate_is_of_the_policy(
    policy: Path, slotted: Path, llama_export: Path, llama_checkpoint: Path, tmp_path: Path
) -> None:
    forget = write_rows(tmp_path / "sums.jsonl", [{"prompt": f"{n} + 1 =", "response": f" {n + 1}"} for n in (3, 4)])
    retain = write_rows(tmp_path / "names.jsonl", [{"prompt": f"Who is {n}?", "response": " Somebody"} for n in (3, 4)])
    base = llama_export / "model.onnx"
    with pytest.raises(BakeoutError, match="over an artifact"):
        certify(policy, base, [forget], [retain], protocol=TINY)
    other = bake(llama_export, steering(llama_checkpoint, 1), tmp_path / "other", BakeOptions(adapter_slots=True))
    with pytest.raises(BakeoutError, match="another artifact"):
        certify(policy, base, [forget], [retain], over=other.directory, protocol=TINY)
    certify(policy, base, [forget], [retain], over=slotted, protocol=TINY)
    content = json.loads((policy / CERTIFICATE).read_text())
    assert content["artifact"]["adapter"] == read_manifest(policy)["adapter"]
    assert content["artifact"]["plan"] == hash_file(policy / PLAN)
    assert all(check.ok for check in verify(policy)) and not (slotted / CERTIFICATE).exists()
    told = {one["name"]: one["why"] for one in content["not_measured"] if one["section"] == "attacks"}
    assert told["after_refusal, follow_up on sums"] == "the artifact refuses nothing"
    # What was measured is the artifact with the adapter: what the plan gives that is baked by itself.
    with Models(policy, base, slotted) as models:
        said = models.runner("artifact", "fp32").generate(PROMPTS, 4)
    assert said == Runner(other.directory).generate(PROMPTS, 4) != Runner(slotted).generate(PROMPTS, 4)


def test_a_policy_for_peft_is_measured_in_its_base_model(lora: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    with Models(lora, llama_checkpoint) as models:
        said = models.runner("artifact", models.own).generate(PROMPTS, 4)
        base = models.runner("base", models.own).generate(PROMPTS, 4)
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model))
    apart = bake(str(llama_checkpoint), plan, tmp_path / "baked", BakeOptions()).directory
    assert said == Runner(apart).generate(PROMPTS, 4) != base
    with pytest.raises(BakeoutError, match="policies of ONNX Runtime"):
        certify(lora, llama_checkpoint, [], [], over=apart)


def test_both_models_are_asked_by_the_template_that_the_policy_was_fitted_by(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(llama_checkpoint, tmp_path / "checkpoint")
    template = "{% if loud %}LOUD {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template)
    model = load_model(checkpoint)
    plan = plan_of(model, weights_digest(checkpoint), low_rank_update(model))
    export_policy(replace(plan, provenance={CHAT_TEMPLATE: {"arguments": {"loud": True}}}), tmp_path / "lora")
    with Models(tmp_path / "lora", checkpoint) as models:
        for tokenizer in (models.tokenizer, *(models.runner(which, models.own).tokenizer for which in MODELS)):
            chat = [{"role": "user", "content": "Why?"}]
            assert tokenizer.apply_chat_template(chat, tokenize=False) == "LOUD Why?"


def test_a_changed_artifact_is_no_base_of_a_policy(slotted: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(slotted, tmp_path / "changed")
    (changed / "config.json").write_text("{}")
    with pytest.raises(BakeoutError, match="not what its manifest lists"):
        export_policy(steering(llama_checkpoint, 1), tmp_path / "policy", artifact=changed)
    assert not (tmp_path / "policy").exists()
