"""A repository that was cloned without Git LFS holds small texts in place of its large files, and errors say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bakeout.export.artifacts.model_source import model_source
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint_files import weights_digest
from bakeout.models.data.row_source import source_digest
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan.plan_file import load_plan

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 2471645608\n"
)


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("model.safetensors", lambda path: weights_digest(path.parent)),
        ("model.safetensors", model_source),
        ("model.gguf", model_source),
        ("model.onnx", load_graph),
        ("model.onnx", model_source),
        ("model.onnx.data", lambda path: load_graph(path.with_suffix(""))),
        ("tokenizer.json", lambda path: load_tokenizer(path.parent)),
        ("plan.safetensors", load_plan),
        ("rows.jsonl", source_digest),
        ("any", hash_file),
    ],
)
def test_a_pointer_is_told(file: str, read: Callable[[Path], object], llama_export: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(llama_export, directory)
    (directory / file).write_text(POINTER)
    with pytest.raises(BakeoutError) as refused:
        read(directory / file)
    assert refused.value.cause == f"{directory / file} is a Git LFS pointer, not the file itself."
    assert "git lfs pull" in refused.value.remedy
