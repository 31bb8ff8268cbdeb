from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bakeout.export.baking.bake import bake
from bakeout.export.baking.tokenizer_config import limit_tokenizer, name_known_class
from bakeout.models.plan import Plan


def test_what_the_artifacts_tokenizer_gives_the_model_takes(
    tiny_plan: Plan, llama_checkpoint: Path, tmp_path: Path
) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    checkpoint = shutil.copytree(llama_checkpoint, tmp_path / "checkpoint")
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("model_input_names", None)
    path.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    assert "token_type_ids" in AutoTokenizer.from_pretrained(checkpoint)("1 + 1")

    artifact = bake(checkpoint, tiny_plan, tmp_path / "artifact").directory
    # As the model card has it.
    inputs = AutoTokenizer.from_pretrained(artifact)("1 + 1", return_tensors="pt")
    assert ORTModelForCausalLM.from_pretrained(artifact).generate(**inputs, max_new_tokens=2).shape[1] > 2


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (None, ["input_ids", "attention_mask"]),
        (["attention_mask", "input_ids"], ["attention_mask", "input_ids"]),
        (["token_type_ids", "input_ids"], ["input_ids"]),
    ],
)
def test_the_order_of_names_stays(tmp_path: Path, given: list[str] | None, left: list[str]) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"a": "é"} | ({} if given is None else {"model_input_names": given})))
    limit_tokenizer(tmp_path)
    assert json.loads(path.read_text()) == {"a": "é", "model_input_names": left}


def test_a_file_that_need_not_change_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"model_input_names":["input_ids"],   "a":1}')
    limit_tokenizer(tmp_path)
    assert path.read_text() == '{"model_input_names":["input_ids"],   "a":1}'


def test_what_transformers_5_wrote_has_a_class_that_other_runtimes_know(llama_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(llama_checkpoint / "tokenizer.json", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    written = json.loads((llama_checkpoint / "tokenizer_config.json").read_text())
    path.write_text(json.dumps({**written, "tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}))
    name_known_class(tmp_path)
    assert json.loads(path.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("12 + 30") == AutoTokenizer.from_pretrained(llama_checkpoint).encode("12 + 30")
    assert "<a>" in tokenizer.all_special_tokens


def test_a_class_of_version_4_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"tokenizer_class":   "GPT2Tokenizer"}')
    name_known_class(tmp_path)
    assert path.read_text() == '{"tokenizer_class":   "GPT2Tokenizer"}'
