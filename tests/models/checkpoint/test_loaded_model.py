"""A model in memory is its checkpoint's as long as every weight is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bakeout.models.checkpoint.checkpoint_files import weights_digest
from bakeout.models.checkpoint.loaded_model import as_checkpoint, holds_weights_of, local_checkpoint
from bakeout.models.errors import BakeoutError

from tests.tiny_models import FAMILIES, MIXTURES, NEWER_FAMILIES, TORCH_MIXTURES, tiny_checkpoint

QUICK = ("llama", "gpt2", "gemma", "bloom", "gpt_neox", "mpt", "mixtral")


def _each(*families: str) -> pytest.MarkDecorator:
    each = [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in families]
    return pytest.mark.parametrize("family", each)


@_each(*FAMILIES, *MIXTURES)
def test_every_weight_counts(checkpoint_of: Callable[[str], Path], family: str) -> None:
    directory = checkpoint_of(family)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert holds_weights_of(directory, model)
    with torch.no_grad():
        for weight in model.parameters():
            value = weight.view(-1)[-1].clone()
            weight.view(-1)[-1] += 1
            assert not holds_weights_of(directory, model)
            weight.view(-1)[-1] = value
    assert holds_weights_of(directory, model.bfloat16())


def test_a_weight_that_the_checkpoint_lacks_counts_too(llama_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_checkpoint)
    model.register_parameter("more", torch.nn.Parameter(torch.ones(1)))
    assert not holds_weights_of(llama_checkpoint, model)


def test_the_checkpoint_it_was_loaded_from_is_taken(llama_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_checkpoint)
    with as_checkpoint(model, None) as directory:
        assert directory == llama_checkpoint


def test_a_model_that_would_be_served_otherwise_than_its_checkpoint_is_refused(llama_checkpoint: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(llama_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(llama_checkpoint)
    # What only training pads with does not matter.
    tokenizer.pad_token = tokenizer.eos_token
    with as_checkpoint(model, tokenizer) as directory:
        assert directory == llama_checkpoint
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(BakeoutError, match="but not its chat template"), as_checkpoint(model, tokenizer):
        pass
    other = AutoTokenizer.from_pretrained(llama_checkpoint)
    other.add_tokens("fish")
    # Other settings of generating do not matter.
    model.generation_config = GenerationConfig(max_new_tokens=20)
    with as_checkpoint(model, None) as directory:
        assert directory == llama_checkpoint
    model.config.eos_token_id = 7
    with (
        pytest.raises(BakeoutError, match=r"but not its tokens that end .* and tokenizer"),
        as_checkpoint(model, other),
    ):
        pass


# Gemma 3 with its vision tower is saved under other names than it has in memory, and so is known as no checkpoint.
@_each(*FAMILIES, *(family for family in NEWER_FAMILIES if family != "gemma3"), *MIXTURES, *TORCH_MIXTURES)
def test_how_a_model_is_loaded_and_generates_does_not_matter(tmp_path: Path, family: str) -> None:
    directory = tiny_checkpoint(family, tmp_path, layers=2)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager")
    model.config.use_cache = False
    model.config.pad_token_id = 1
    model.config.attention_dropout = 0.1
    model.config.of_another_library = "1"
    with as_checkpoint(model, None) as found:
        assert found == directory


# transformers 5 reads the rotary base in `rope_parameters`, and nothing in an attribute `rope_theta`.
_ROTARY_BASE: dict[str, Any] = {"rope_theta": 50.0}
if transformers.__version__.startswith("5."):
    _ROTARY_BASE = {"rope_parameters": {"rope_type": "default", **_ROTARY_BASE}}


@pytest.mark.parametrize(
    "changed",
    [
        _ROTARY_BASE,
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"rms_norm_eps": 0.5},
        {"num_hidden_layers": 2},
    ],
)
def test_a_model_that_computes_otherwise_than_its_checkpoint_is_refused(
    llama_checkpoint: Path, changed: dict[str, Any]
) -> None:
    config = AutoConfig.from_pretrained(llama_checkpoint)
    for name, value in changed.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_pretrained(llama_checkpoint, config=config)
    with pytest.raises(BakeoutError, match="but not its configuration"), as_checkpoint(model, None):
        pass


def test_a_checkpoint_without_a_tokenizer_is_not_compared_with_one(llama_checkpoint: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama_checkpoint).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with as_checkpoint(model, AutoTokenizer.from_pretrained(llama_checkpoint)) as directory:
        assert directory == tmp_path


def test_the_same_weights_are_saved_with_the_same_digest(llama_checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_checkpoint)
    model.config.name_or_path = ""
    digests = set()
    for _ in range(2):
        with as_checkpoint(model, AutoTokenizer.from_pretrained(llama_checkpoint)) as directory:
            digests.add(weights_digest(directory))
        assert not directory.exists()
    model.save_pretrained(tmp_path / "saved")
    assert digests == {weights_digest(tmp_path / "saved")}


def test_what_transformers_does_not_save_is_refused(llama_checkpoint: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(llama_checkpoint)
    model.config.name_or_path = ""
    model.generation_config.top_p = 0.6
    tokenizer = AutoTokenizer.from_pretrained(llama_checkpoint)
    with pytest.raises(BakeoutError, match="top_p"), as_checkpoint(model, tokenizer):
        pass


def test_what_is_not_on_this_machine_is_no_checkpoint(llama_checkpoint: Path, tmp_path: Path) -> None:
    assert local_checkpoint(str(llama_checkpoint)) == llama_checkpoint
    for name in (str(tmp_path), "nobody/no-such-model", "no hub id"):
        assert local_checkpoint(name) is None
