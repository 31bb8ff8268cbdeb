"""Rows and models in memory give what the same rows and models on disk give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import bakeout
from bakeout.models.checkpoint.checkpoint_files import weights_digest
from bakeout.models.plan.plan_file import plan_bytes

from tests.imported_sources import peft_adapter
from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, rows, write_recipe
from tests.tiny_models import byte_tokenizer

SUBJECTS = ("sums", "names")
USES = ("probe", "selection", "calibration")
PRUNING = {"selective_pruning": {"forget": "sums", "ratio": 0.1}}


def _recipe(model: Path | str, *interventions: Any) -> bakeout.Recipe:
    data: Any = {subject: {use: rows(subject, use) for use in USES} for subject in SUBJECTS}
    return bakeout.Recipe(model=str(model), data=data, interventions=list(interventions or (PRUNING, NEURON_ADJUST)))


def _loaded(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def changed(llama_checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that is no checkpoint's."""
    model, tokenizer = _loaded(llama_checkpoint)
    with torch.no_grad():
        next(model.parameters())[0] += 1
    return model, tokenizer


def test_rows_in_memory_give_the_plan_that_files_give(llama_checkpoint: Path, tmp_path: Path) -> None:
    plan = bakeout.fit(_recipe(llama_checkpoint, NEURON_ADJUST, KEY_SPACE_DETECTION))
    data = {name: {use: f"data/{name}.{use}.jsonl" for use in USES} for name in SUBJECTS}
    filed = bakeout.fit(write_recipe(tmp_path, llama_checkpoint, data=data))
    assert plan_bytes(plan) == plan_bytes(filed)


def test_options_may_stand_for_an_entry(llama_checkpoint: Path) -> None:
    options = bakeout.NeuronAdjustOptions(**NEURON_ADJUST["neuron_adjust"])
    (entry,) = _recipe(llama_checkpoint, options).interventions
    assert entry == _recipe(llama_checkpoint, NEURON_ADJUST).interventions[0]
    assert entry.options is options
    assert bakeout.method("neuron_adjust").options is bakeout.NeuronAdjustOptions


def test_a_mapping_may_stand_for_the_options_of_baking(
    llama_checkpoint: Path, tiny_plan: bakeout.Plan, tmp_path: Path
) -> None:
    baked = bakeout.bake(llama_checkpoint, tiny_plan, tmp_path / "baked", {"dtype": "fp16"})
    options = bakeout.BakeOptions(dtype="fp16")
    assert baked.digest == bakeout.bake(llama_checkpoint, tiny_plan, tmp_path / "again", options).digest
    with pytest.raises(bakeout.BakeoutError, match=r"none of baking: dtype: .*"):
        bakeout.bake(llama_checkpoint, tiny_plan, tmp_path / "refused", {"dtype": "fp8"})


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_one_file(llama_checkpoint: Path, tiny_plan: bakeout.Plan, tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows("sums", "test")))
    (row,) = bakeout.evaluate(llama_checkpoint, kind(path)).rows
    assert (row.data, row.prompts) == ("sums", len(rows("sums", "test")))
    missing = tmp_path / "missing.jsonl"
    artifact = bakeout.bake(llama_checkpoint, tiny_plan, tmp_path / "baked")
    with pytest.raises(bakeout.BakeoutError, match=r"missing\.jsonl"):
        bakeout.certify(artifact, llama_checkpoint, kind(missing), kind(path), quick=True)


def test_a_recipe_that_contradicts_itself_is_refused(llama_checkpoint: Path) -> None:
    recipe = _recipe(llama_checkpoint, bakeout.NeuronAdjustOptions(forget="sum"))
    with pytest.raises(bakeout.BakeoutError, match=r"no data are called 'sum'.*did you mean 'sums'"):
        bakeout.fit(recipe)


def test_a_model_in_memory_gives_the_plan_that_its_checkpoint_gives(llama_checkpoint: Path) -> None:
    model, tokenizer = _loaded(llama_checkpoint)
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    recipe = _recipe(llama_checkpoint)
    plan = bakeout.fit(recipe, model=model, tokenizer=tokenizer)
    assert plan_bytes(plan) == plan_bytes(bakeout.fit(recipe))
    assert plan_bytes(plan) == plan_bytes(bakeout.fit(recipe, model=model))
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_model_in_memory_that_looks_ahead_is_refused() -> None:
    torch.manual_seed(0)
    # Weights as large as trained ones, of which attention tells tokens apart.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertLMHeadModel(BertConfig(vocab_size=300, initializer_range=0.2, **sizes)).train()
    with pytest.raises(bakeout.BakeoutError, match=r"The model in memory .* depends on tokens behind it"):
        bakeout.fit(_recipe("mine"), model=model, tokenizer=byte_tokenizer())
    assert model.training


def test_a_model_of_no_checkpoint_goes_all_the_way(
    changed: tuple[PreTrainedModel, PreTrainedTokenizerBase], llama_checkpoint: Path, tmp_path: Path
) -> None:
    model, tokenizer = changed
    plan = bakeout.fit(_recipe("mine"), model=model, tokenizer=tokenizer)
    artifact = bakeout.bake(model, plan, tmp_path / "baked", tokenizer=tokenizer)
    assert bakeout.verify(artifact, base=model, tokenizer=tokenizer).ok
    evaluation = bakeout.evaluate(artifact, {"sums": rows("sums", "test")}, base=model, tokenizer=tokenizer)
    assert [row.model for row in evaluation.rows] == ["base", "baked"]
    # The directory that it is saved to is the model; the one that it once came from is not.
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert bakeout.bake(tmp_path / "saved", plan, tmp_path / "again").digest == artifact.digest
    with pytest.raises(bakeout.BakeoutError, match="fitted on weights with sha256"):
        bakeout.bake(llama_checkpoint, plan, tmp_path / "refused")


def test_a_changed_model_is_not_the_recipes(
    changed: tuple[PreTrainedModel, PreTrainedTokenizerBase], llama_checkpoint: Path
) -> None:
    model, tokenizer = changed
    with pytest.raises(bakeout.BakeoutError, match="weights of the model in memory are not those in"):
        bakeout.fit(_recipe(llama_checkpoint), model=model, tokenizer=tokenizer)
    with pytest.raises(bakeout.BakeoutError, match="tokenizer is not given"):
        bakeout.fit(_recipe("mine"), model=model)


def test_a_model_in_half_precision_is_fitted_as_it_is(llama_checkpoint: Path) -> None:
    model, tokenizer = _loaded(llama_checkpoint)
    plan = bakeout.fit(_recipe(llama_checkpoint), model=model.bfloat16(), tokenizer=tokenizer)
    assert plan.model.digest == weights_digest(llama_checkpoint)
    assert plan.provenance["computed_in"] == {"devices": ["cpu"], "dtypes": ["bfloat16"]}


def test_other_models_in_memory_are_refused(llama_checkpoint: Path) -> None:
    _, tokenizer = _loaded(llama_checkpoint)
    recipe = _recipe(llama_checkpoint)
    other: Any = torch.nn.Linear(1, 1)
    with pytest.raises(bakeout.BakeoutError, match="A Linear is no transformers model"):
        bakeout.fit(recipe, model=other, tokenizer=tokenizer)
    with pytest.raises(bakeout.BakeoutError, match="without its model"):
        bakeout.fit(recipe, tokenizer=tokenizer)


def test_a_model_in_memory_is_a_base_of_plans_too(llama_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = _loaded(llama_checkpoint)
    adapter = tmp_path / "adapter"
    peft_adapter(llama_checkpoint, adapter)
    imported = bakeout.import_plan(adapter, model, tokenizer=tokenizer)
    assert plan_bytes(imported) == plan_bytes(bakeout.import_plan(adapter, llama_checkpoint))
    adjusted = bakeout.fit(_recipe(llama_checkpoint, NEURON_ADJUST))
    combined = bakeout.combine([imported, adjusted], model)
    assert plan_bytes(combined) == plan_bytes(bakeout.combine([imported, adjusted], llama_checkpoint))


def test_what_is_no_path_or_token_is_refused_in_words(
    llama_checkpoint: Path, tiny_plan: bakeout.Plan, tmp_path: Path
) -> None:
    model, _ = _loaded(llama_checkpoint)
    given: Any = rows("sums", "test")
    with pytest.raises(bakeout.BakeoutError, match=r"A model to evaluate is given as LlamaForCausalLM.*save_pre"):
        bakeout.evaluate(model, {"sums": given})  # type: ignore[arg-type]
    with pytest.raises(bakeout.BakeoutError, match="Data without a name is given as dict, not as a path"):
        bakeout.evaluate(llama_checkpoint, given)
    artifact = bakeout.bake(llama_checkpoint, tiny_plan, tmp_path / "baked")
    with pytest.raises(bakeout.BakeoutError, match=r"no dtype 'fp16'.*float16"):
        bakeout.verify(artifact, base=llama_checkpoint, dtype="fp16")  # type: ignore[arg-type]
    for wrong, says in (
        ([[1, 2], [99999]], "Prompt 2: token 99999 is beyond the model's"),
        ([[1, 2], [-1]], "Prompt 2 is empty, or has a negative token id"),
        ([[1, 2], []], "Prompt 2 is empty, or has a negative token id"),
        ([[5] * 5000], "Prompt 1: 5000 tokens; the model's context is"),
        ([1, 2, 3], "no lists of token ids"),
        (["What is"], "no lists of token ids"),
        ([[1.5, 2]], "no lists of token ids"),
    ):
        with pytest.raises(bakeout.BakeoutError, match=says):
            bakeout.verify(artifact, base=llama_checkpoint, prompts=wrong, checks=["parity"])  # type: ignore[arg-type]
    assert bakeout.verify(artifact, base=llama_checkpoint, prompts=np.array([[1, 2], [3, 4]])).ok  # type: ignore[arg-type]
    for odd in (5, [5]):
        with pytest.raises(bakeout.BakeoutError, match="Data without a name is given as int"):
            bakeout.evaluate(llama_checkpoint, odd)  # type: ignore[arg-type]
    with pytest.raises(bakeout.BakeoutError, match="A plan is given as int"):
        bakeout.combine([5], llama_checkpoint)  # type: ignore[list-item]
