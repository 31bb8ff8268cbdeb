"""Graphs on the hub whose data are safetensors: weights that are fetched like a checkpoint's, and are none."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import onnx
import pytest
from safetensors.numpy import save_file

from bakeout.export.artifacts.model_source import model_source
from bakeout.models.checkpoint.checkpoint import Checkpoint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of repositories by name; what is fetched of them, pattern by pattern, lies in ``cache``."""

    def fetch(name: str, patterns: Sequence[str]) -> Path:
        directory = tmp_path / "cache" / name
        directory.mkdir(parents=True, exist_ok=True)
        for path in (tmp_path / "hub" / name).iterdir():
            if any(fnmatch(path.name, pattern) for pattern in patterns):
                shutil.copy(path, directory)
        return directory

    monkeypatch.setattr("bakeout.export.artifacts.model_source.local_directory", fetch)
    return tmp_path / "hub"


def _with_safetensors(source: Path, directory: Path) -> None:
    """The graph of ``source`` with its weights in ``model.safetensors``."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.onnx*"))
    model = onnx.load(source / "model.onnx")
    weights = {}
    for tensor in model.graph.initializer:
        weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
        onnx.external_data_helper.set_external_data(tensor, "model.safetensors", 0, weights[tensor.name].nbytes)
        tensor.ClearField("raw_data")
    save_file(weights, directory / "model.safetensors")
    (directory / "model.onnx").write_bytes(model.SerializeToString())


def test_the_graph_is_taken(hub: Path, llama_onnx: Path, tmp_path: Path) -> None:
    _with_safetensors(llama_onnx, hub / "graph")
    assert model_source("graph") == tmp_path / "cache" / "graph" / "model.onnx"


def test_a_checkpoint_is_taken_and_the_graph_beside_it_not_fetched(
    hub: Path, llama_checkpoint: Path, llama_onnx: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_checkpoint, hub / "checkpoint")
    shutil.copy(llama_onnx / "model.onnx", hub / "checkpoint")
    assert isinstance(model_source("checkpoint"), Checkpoint)
    assert not (tmp_path / "cache" / "checkpoint" / "model.onnx").exists()


def test_weights_that_tell_no_format_are_a_checkpoints_where_no_graph_reads_them(
    hub: Path, llama_checkpoint: Path, llama_onnx: Path
) -> None:
    shutil.copytree(llama_checkpoint, hub / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(llama_onnx / "model.onnx", hub / "checkpoint")
    model = onnx.load(llama_onnx / "model.onnx")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    save_file(weights, hub / "checkpoint" / "model.safetensors")
    assert isinstance(model_source("checkpoint"), Checkpoint)
