"""Tokenizers whose files have other names than most: everything that they need is in the artifact."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import transformers.models
from transformers import AutoTokenizer

from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.baking.bake import bake
from bakeout.export.baking.tokenizer_config import require_same_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan


def file_names() -> set[str]:
    """The names of the files that transformers' tokenizers read."""
    names: set[str] = set()
    for path in Path(transformers.models.__path__[0]).glob("*/tokenization_*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "VOCAB_FILES_NAMES":
                names |= set(ast.literal_eval(statement.value).values())
    return names


def test_the_files_of_every_tokenizer_travel(tmp_path: Path) -> None:
    names = file_names() | {
        "source.spm",
        "target.spm",
        "sentencepiece.bpe.model",
        "bpe.codes",
        "qwen.tiktoken",
        "preprocessor_config.json",
        "processor_config.json",
        "chat_template.jinja",
    }
    assert len(names) > 20
    for name in names:
        (tmp_path / name).touch()
    for name in ("model.safetensors", "pytorch_model.bin", "modeling.py", "README.md", "training_args.bin"):
        (tmp_path / name).touch()
    assert {path.name for path in companion_files(tmp_path)} == names


@pytest.fixture
def checkpoint(llama_onnx: Path, tmp_path: Path) -> Path:
    """An export with a tokenizer of two files, neither of which is a ``tokenizer.json``."""
    model = tmp_path / "model"
    shutil.copytree(llama_onnx, model, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*", "chat*"))
    (model / "vocab.txt").write_text("a 1\nb 1\nab 1\nfish 1\n")
    (model / "bpe.codes").write_text("#version\na b</w> 1\n")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    return model


def test_a_tokenizer_of_other_files_works_in_the_artifact(checkpoint: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    artifact = bake(checkpoint, tiny_plan, tmp_path / "baked").directory
    assert (artifact / "bpe.codes").is_file()
    texts = ["ab", "a b", "fish"]
    assert [AutoTokenizer.from_pretrained(artifact).encode(text) for text in texts] == [
        AutoTokenizer.from_pretrained(checkpoint).encode(text) for text in texts
    ]


def test_an_artifact_without_one_of_the_files_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    require_same_tokenizer(checkpoint, other)
    (other / "bpe.codes").unlink()
    with pytest.raises(BakeoutError, match="the artifact's cannot"):
        require_same_tokenizer(checkpoint, other)
    require_same_tokenizer(other, checkpoint)


def test_other_tokens_are_noticed(llama_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(llama_checkpoint, other)
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BakeoutError, match="gives other tokens"):
        require_same_tokenizer(llama_checkpoint, other)
