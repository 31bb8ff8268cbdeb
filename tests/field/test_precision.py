"""Checkpoints of which float16, or transformers, makes less than they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from bakeout.export.baking.bake import bake
from bakeout.export.fitting.fit import fit
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.verification.verify import verify
from bakeout.models.errors import BakeoutError

from tests.recipe_files import write_recipe
from tests.tiny_models import tiny_checkpoint


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint whose last feed-forward layer gives values beyond 65504, which a norm makes small again."""
    checkpoint = tiny_checkpoint("llama", tmp_path / "large")
    weights = load_file(checkpoint / "model.safetensors")
    for name in ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.down_proj.weight"):
        weights[name] *= 3000
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    return checkpoint


def test_a_model_that_overflows_in_float16_is_told_so(large: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, large)
    plan = fit(load_recipe(recipe))
    with pytest.raises(BakeoutError, match="overflows in fp16") as raised:
        bake(large, plan, tmp_path / "half", BakeOptions(dtype="fp16"))
    assert "fp32" in raised.value.remedy
    assert not (tmp_path / "half").exists()
    bake(large, plan, tmp_path / "whole")


def test_parity_tells_of_an_overflow_that_the_canary_does_not_show(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", tmp_path / "large")
    weights = load_file(checkpoint / "model.safetensors")
    # A token that has no text, so that no search takes it.
    weights["model.embed_tokens.weight"][262] *= 1e6
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    plan = fit(load_recipe(write_recipe(tmp_path, checkpoint)))
    half = bake(checkpoint, plan, tmp_path / "half", BakeOptions(dtype="fp16")).directory
    (parity,) = verify(half, base=checkpoint, prompts=[[40, 41]], checks=["parity"])
    assert parity.ok, parity.detail
    (parity,) = verify(half, base=checkpoint, prompts=[[40, 41], [40, 262]], checks=["parity"])
    assert not parity.ok
    assert "overflows in fp16" in parity.detail
    assert "fp32" in parity.detail


def test_an_index_without_metadata_is_read(llama_checkpoint: Path, tmp_path: Path) -> None:
    """The weight map is all that is needed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(llama_checkpoint).save_pretrained(model, max_shard_size="50KB")
    AutoTokenizer.from_pretrained(llama_checkpoint).save_pretrained(model)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert len(set(content["weight_map"].values())) > 1
    index.write_text(json.dumps({"weight_map": content["weight_map"]}))
    assert build(write_recipe(tmp_path, model), tmp_path / "artifact").receipts
