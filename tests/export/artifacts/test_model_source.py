"""One answer to what a path is, and an error each, with a remedy, for what Bakeout does not read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.artifacts.model_source import find_checkpoint, find_graph, local_form, model_source
from bakeout.export.baking.bake import bake
from bakeout.export.baking.dry_run import dry_run
from bakeout.export.evaluation.opening import as_onnx
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan

from tests.directory_tree import tree


def adapter(directory: Path, checkpoint: Path) -> Path:
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(b"")
    return directory


def adapted_checkpoint(directory: Path, checkpoint: Path) -> Path:
    shutil.copytree(checkpoint, directory / "both")
    return adapter(directory / "both", checkpoint)


def gguf_file(directory: Path, checkpoint: Path) -> Path:
    (directory / "model.bin").write_bytes(b"GGUF\3\0\0\0")
    return directory / "model.bin"


def gguf_directory(directory: Path, checkpoint: Path) -> Path:
    gguf_file(directory, checkpoint).rename(directory / "model.gguf")
    return directory


def weights_file(directory: Path, checkpoint: Path) -> Path:
    return Path(shutil.copy(checkpoint / "model.safetensors", directory))


def absent_graph(directory: Path, checkpoint: Path) -> Path:
    return directory / "absent.onnx"


REFUSED: dict[Callable[[Path, Path], Path], str] = {
    adapter: "is an adapter alone",
    adapted_checkpoint: "with an adapter beside it",
    gguf_file: "is GGUF|is not a whole GGUF file",
    gguf_directory: "is GGUF|is not a whole GGUF file",
    weights_file: "single file of weights",
    absent_graph: "no file or directory",
}


@pytest.mark.parametrize("create", REFUSED)
def test_what_is_not_read_is_refused_by_name_by_everything(
    create: Callable[[Path, Path], Path], llama_checkpoint: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    model = create(tmp_path, llama_checkpoint)
    before = tree(tmp_path)
    users: list[Callable[[], Any]] = [
        lambda: find_checkpoint(model),
        lambda: Runner(model),
        lambda: as_onnx(model, tmp_path, "auto"),
        lambda: dry_run(model, tiny_plan, BakeOptions()),
        lambda: bake(model, tiny_plan, tmp_path / "baked"),
    ]
    for use in users:
        with pytest.raises(BakeoutError, match=REFUSED[create]):
            use()
    assert tree(tmp_path) == before


def test_graphs_and_checkpoints_are_told_apart(llama_checkpoint: Path, llama_export: Path) -> None:
    graph = llama_export / "model.onnx"
    assert model_source(llama_export) == model_source(graph) == find_graph(llama_export) == graph
    assert model_source(str(llama_checkpoint)) == find_checkpoint(llama_checkpoint) == Checkpoint(llama_checkpoint)
    assert [local_form(path) for path in (llama_export, llama_checkpoint)] == ["graph", "checkpoint"]
    with pytest.raises(BakeoutError, match="ONNX graph, and a checkpoint is needed"):
        find_checkpoint(llama_export)
    with pytest.raises(BakeoutError, match="holds no ONNX graph"):
        find_graph(llama_checkpoint)


def test_of_several_graphs_none_is_guessed(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BakeoutError, match=r"found: a\.onnx, b\.onnx"):
        model_source(tmp_path)
