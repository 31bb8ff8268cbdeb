"""Checkpoints as transformers 5 writes them, read by version 4: the same model, or a refusal, and never another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError

pytestmark = pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) > 4, reason="version 5 reads its own")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "head_dim": 16,
    "initializer_range": 0.3,
}


def _written_by_5(directory: Path, model_type: str, rope: dict[str, Any], **entries: Any) -> torch.Tensor:
    """Save a model by version 4, rewrite its configuration as version 5 has it, and give its logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **TINY, **entries)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    path = directory / "config.json"
    written = json.loads(path.read_text())
    for name in ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"):
        written.pop(name, None)
    path.write_text(json.dumps({**written, "rope_parameters": rope}))
    return _logits(model)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(24)[None]).logits
    return logits


@pytest.mark.parametrize(
    ("model_type", "rope", "entries"),
    [
        ("llama", {"rope_theta": 500.0, "rope_type": "default"}, {"rope_theta": 500.0}),
        ("llama", {"rope_theta": 500.0, **LLAMA3}, {"rope_theta": 500.0, "rope_scaling": LLAMA3}),
        ("qwen2", {"rope_theta": 500.0, "rope_type": "default"}, {"rope_theta": 500.0}),
        (
            "phi",
            {"rope_theta": 500.0, "partial_rotary_factor": 0.25, "rope_type": "default"},
            {"rope_theta": 500.0, "partial_rotary_factor": 0.25},
        ),
    ],
)
def test_the_rotary_embedding_is_the_one_that_was_written(
    model_type: str, rope: dict[str, Any], entries: dict[str, Any], tmp_path: Path
) -> None:
    meant = _written_by_5(tmp_path, model_type, rope, **entries)
    torch.testing.assert_close(_logits(load_model(tmp_path)), meant)
    # What is guarded against: version 4 alone says nothing, and computes something else.
    ignored: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not torch.allclose(_logits(ignored), meant, atol=1e-3)


@pytest.mark.parametrize(
    ("model_type", "rope"),
    [
        ("gpt_neox", {"rope_theta": 500.0, "partial_rotary_factor": 0.25, "rope_type": "default"}),
        ("llama", {"full_attention": {"rope_theta": 500.0, "rope_type": "default"}}),
    ],
)
def test_a_rotary_embedding_that_version_4_cannot_be_told_is_refused(
    model_type: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    _written_by_5(tmp_path, model_type, rope)
    with pytest.raises(BakeoutError, match="transformers 5 wrote its rotary embedding"):
        load_model(tmp_path)


def test_the_tokenizer_is_the_one_that_was_written(llama_checkpoint: Path, tmp_path: Path) -> None:
    before = load_tokenizer(llama_checkpoint)
    written = json.loads((llama_checkpoint / "tokenizer_config.json").read_text())
    listed = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": []}
    (tmp_path / "tokenizer.json").write_bytes((llama_checkpoint / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**written, **listed}))
    after = load_tokenizer(tmp_path)
    ids = before.encode("12 + 30 = 42\nwhat is it?")
    assert after.encode("12 + 30 = 42\nwhat is it?") == ids
    assert after.decode(ids) == before.decode(ids)
    assert after.eos_token_id == before.eos_token_id
