"""Building a checkpoint: a recipe of weight edits alone may ask for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.evaluation.rows import BASE
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.recipe import RecipeError, load_recipe
from bakeout.export.verification.verify import verify

from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, write_recipe

PRUNING = {"selective_pruning": {"forget": "sums", "ratio": 0.2}}
TO = {"to": "safetensors"}


def test_a_recipe_asks_for_a_checkpoint_and_gets_one(llama_checkpoint: Path, tmp_path: Path) -> None:
    built = build(write_recipe(tmp_path, llama_checkpoint, [PRUNING], export=TO), tmp_path / "artifact")
    assert {(row.model == BASE, row.data) for row in built.rows} == {
        (base, data) for base in (True, False) for data in ("sums", "names")
    }
    assert not list(built.directory.glob("*.onnx*"))
    assert "llama without sums" in (built.directory / "README.md").read_text()
    assert read_manifest(built.directory)["options"]["to"] == "safetensors"
    loaded: Any = AutoModelForCausalLM.from_pretrained(built.directory, output_loading_info=True)
    _, loading = loaded
    assert not any(loading.values())
    assert all(check.ok for check in verify(built.directory, base=llama_checkpoint))


@pytest.mark.parametrize("intervention", [NEURON_ADJUST, KEY_SPACE_DETECTION])
def test_what_no_checkpoint_can_carry_is_refused_before_anything_is_fitted(
    llama_checkpoint: Path, tmp_path: Path, intervention: dict[str, object]
) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, [PRUNING, intervention], export=TO)
    with pytest.raises(RecipeError, match=r"line 3: .* no checkpoint can carry"):
        load_recipe(recipe)


def test_runtimes_want_a_graph(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, [PRUNING], export={**TO, "runtimes": ["genai"]})
    with pytest.raises(RecipeError, match=r"line 4: .*graphs"):
        load_recipe(recipe)
