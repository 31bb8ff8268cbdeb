"""Plans as PEFT adapters: what peft computes on the base model is what the baked checkpoint computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from bakeout.export.adapters.peft_adapter import export_peft_adapter
from bakeout.export.baking.bake import bake
from bakeout.export.importing.import_plan import import_plan
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.plan.plan_file import load_plan, save_plan

from tests.conftest import CheckpointOf
from tests.imported_sources import IDS, logits_of, peft_adapter
from tests.residual_plans import residual_addition
from tests.weight_plans import low_rank_update, plan_of, zero_columns


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_peft_computes_the_same(checkpoint_of: CheckpointOf, tmp_path: Path, family: str) -> None:
    checkpoint = checkpoint_of(family)
    model = load_model(checkpoint)
    # Two updates of some weights, of different ranks.
    updates = [low_rank_update(model), low_rank_update(model, layers=(2, 3), roles=("down", "gate"), rank=3, seed=1)]
    plan = plan_of(model, weights_digest(checkpoint), *updates)
    ranks = export_peft_adapter(plan, tmp_path / "adapter")
    assert {rank for name, rank in ranks.items() if ".2." in name} >= {5}
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(load_model(checkpoint), str(tmp_path / "adapter"))(IDS).logits
    baked = logits_of(bake(str(checkpoint), plan, tmp_path / "baked", BakeOptions(to="safetensors")).directory)
    assert (adapted - baked).abs().max() < 2e-3 and (adapted - logits_of(checkpoint)).abs().max() > 0.1
    back = import_plan(tmp_path / "adapter", str(checkpoint))
    assert len(back.interventions[0].parts) == len({part.where for update in updates for part in update.parts})


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "mixtral"])
def test_attention_comes_back_as_it_was_imported(checkpoint_of: CheckpointOf, tmp_path: Path, family: str) -> None:
    checkpoint = checkpoint_of(family)
    targets = {"gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value", "dense"], "phi3": "all-linear"}
    expected = peft_adapter(
        checkpoint,
        tmp_path / "adapter",
        target_modules=targets.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"]),
        fan_in_fan_out=family == "gpt2",
    )
    plan = import_plan(tmp_path / "adapter", str(checkpoint))
    save_plan(plan, tmp_path / "plan.safetensors")
    export_peft_adapter(load_plan(tmp_path / "plan.safetensors"), tmp_path / "back")
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(load_model(checkpoint), str(tmp_path / "back"))(IDS).logits
    assert (adapted - expected).abs().max() < 1e-4 < 0.1 < (adapted - logits_of(checkpoint)).abs().max()


def test_what_lora_does_not_carry_is_named(llama_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(llama_checkpoint)
    for other in (zero_columns(1), residual_addition(model)):
        plan = plan_of(model, "ab" * 32, low_rank_update(model), other)
        with pytest.raises(BakeoutError, match=other.title):
            export_peft_adapter(plan, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
