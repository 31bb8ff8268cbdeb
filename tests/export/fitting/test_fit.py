"""Fitting: the same recipe gives the same plan, and each intervention sees those before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.progress import Item

from tests.fitted_regions import cubes_of
from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, rows, write_recipe, write_rows
from tests.tiny_models import byte_tokenizer


def test_a_plan_carries_what_the_recipe_asks_for(tiny_plan: Plan, llama_checkpoint: Path) -> None:
    adjust, detection = tiny_plan.interventions
    assert isinstance(adjust, NeuronAdjust)
    assert isinstance(detection, KeySpaceDetection)
    assert sum(len(layer.neurons) for layer in adjust.layers) == round(0.2 * 4 * 96)
    assert adjust.report.as_json()["forget"] == ["sums"]
    assert adjust.report.as_json()["retain"] == ["names"]
    assert detection.layers == (2,)
    text = byte_tokenizer().decode(detection.refusal.tolist(), skip_special_tokens=True)
    assert text == "Your query is not valid."
    assert detection.refusal[-1] == byte_tokenizer().eos_token_id
    assert detection.report.as_json()["retain"].keys() == {"names"}
    assert tiny_plan.model.digest == weights_digest(llama_checkpoint)


def test_the_same_recipe_gives_the_same_bytes_anywhere(tiny_plan: Plan, llama_checkpoint: Path, tmp_path: Path) -> None:
    again = fit(load_recipe(write_recipe(tmp_path / "another" / "place", llama_checkpoint)))
    assert plan_bytes(again) == plan_bytes(tiny_plan)
    assert str(llama_checkpoint.parent).encode() not in plan_bytes(again)


def test_a_plan_says_what_it_was_fitted_on(tiny_plan: Plan, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows("sums", "probe"))
    assert tiny_plan.provenance["data"]["sums"]["probe"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {"bakeout", "torch", "transformers"} <= tiny_plan.provenance["versions"].keys()
    json.dumps(tiny_plan.provenance)


@pytest.mark.parametrize("everything", [False, True])
def test_a_file_that_is_replaced_during_a_fit_is_recorded_as_it_was_read(
    llama_checkpoint: Path, tmp_path: Path, everything: bool
) -> None:
    content = {name: [row for use in ("probe", "selection") for row in rows(name, use)] for name in ("sums", "names")}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", content[name]) for name in content}
    data = {name: str(path) if everything else {"probe": str(path)} for name, path in files.items()}
    recipe = load_recipe(write_recipe(tmp_path, llama_checkpoint, [NEURON_ADJUST], data=data))
    untouched = fit(recipe)
    read = hashlib.sha256(files["sums"].read_bytes()).hexdigest()

    def replacing(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        write_rows(files["sums"], content["names"])
        return iterable

    plan = fit(recipe, replacing)
    assert plan.provenance["data"]["sums"] == {"file" if everything else "probe": read}
    assert plan_bytes(plan) == plan_bytes(untouched)
    assert hashlib.sha256(files["sums"].read_bytes()).hexdigest() != read


def test_each_intervention_is_fitted_with_those_before_it(
    tiny_plan: Plan, llama_checkpoint: Path, tmp_path: Path
) -> None:
    alone = fit(load_recipe(write_recipe(tmp_path, llama_checkpoint, [KEY_SPACE_DETECTION])))
    after = tiny_plan.interventions[1]
    assert isinstance(after, KeySpaceDetection)
    prompts = [byte_tokenizer()(row["prompt"]).input_ids for row in rows("sums", "probe")]
    keys = probe_keys(load_model(llama_checkpoint), prompts, layers=[2], batch_size=8)[2]
    unadjusted = alone.interventions[0]
    assert isinstance(unadjusted, KeySpaceDetection)
    np.testing.assert_allclose(cubes_of(unadjusted).centre[0], keys.mean(axis=0), atol=1e-5)
    assert np.abs(cubes_of(after).centre - cubes_of(unadjusted).centre).max() > 0.01


def test_several_layers_and_skills_and_a_given_alpha(llama_checkpoint: Path, tmp_path: Path) -> None:
    options = {"forget": ["sums", "names"], "layers": [2, 0], "cubes": 2, "alpha": 7.5, "positions": "every"}
    plan = fit(load_recipe(write_recipe(tmp_path, llama_checkpoint, [{"key_space_detection": options}])))
    (detection,) = plan.interventions
    assert isinstance(detection, KeySpaceDetection)
    assert detection.layers == (0, 2)
    assert detection.skills == ("sums", "sums", "names", "names")
    assert detection.alpha.tolist() == [7.5] * 4


def test_neuron_adjust_alone_needs_probe_data_alone(llama_checkpoint: Path, tmp_path: Path) -> None:
    data = {name: {"probe": f"data/{name}.probe.jsonl"} for name in ("sums", "names")}
    plan = fit(load_recipe(write_recipe(tmp_path, llama_checkpoint, [NEURON_ADJUST], data=data)))
    assert [intervention.kind for intervention in plan.interventions] == ["neuron_adjust"]


@pytest.mark.parametrize(
    ("intervention", "cause"),
    [
        ({"forget": "sums"}, "calibration"),
        ({"forget": "sums", "epsilon": 0.1, "layers": [9]}, "layer"),
        ({"forget": "sums", "epsilon": 0.1, "cubes": 31}, "too few"),
        ({"forget": "sums", "epsilon": 0.1, "refusal": "x" * 300}, "refusal"),
    ],
)
def test_what_cannot_be_fitted_is_told(
    llama_checkpoint: Path, tmp_path: Path, intervention: dict[str, object], cause: str
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, llama_checkpoint, [{"key_space_detection": intervention}]))
    with pytest.raises(BakeoutError, match=cause):
        fit(recipe)


def test_a_refusal_that_the_tokenizer_cannot_write() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "no": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert refusal_tokens("no", tokenizer, [1]).tolist() == [2, 1]
    with pytest.raises(BakeoutError, match="cannot write the refusal 'never'"):
        refusal_tokens("never", tokenizer, [1])
    with pytest.raises(BakeoutError, match="holds token 2, at which decode loops end a text"):
        refusal_tokens("no", tokenizer, [1, 2])
    with pytest.raises(BakeoutError, match="end-of-text"):
        refusal_tokens("no", tokenizer, [])
