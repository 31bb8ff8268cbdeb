"""Key Space Detection in a float16 graph: no products in branches, in which the CPU would cast weights in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.plan import KeySpaceDetection

from tests.refusing_graphs import REFUSAL, Array, Session, bake, detection_of

FORGOTTEN = [40, 41, 42, 43]
KEPT = [60, 61, 62, 63]


@pytest.fixture(scope="module")
def half(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KeySpaceDetection]:
    directory = export_checkpoint(llama_checkpoint, tmp_path_factory.mktemp("half"), "fp16").parent
    return directory, detection_of(directory, [FORGOTTEN], layers=(1,))


def _answers(session: Session, prompt: list[int]) -> list[Array]:
    """The logits of a prefill and of three greedy tokens behind it."""
    tokens, out, logits = np.array([prompt]), None, []
    for length in range(len(prompt), len(prompt) + 4):
        out = session.step(tokens, np.ones((1, length), np.int64), out)
        logits.append(out["logits"])
        tokens = out["logits"][:, -1:].argmax(axis=-1)
    return logits


def _exits_early(directory: Path) -> bool:
    """Whether a branch computes what the model's own layers do."""
    graph = load_graph(directory / "model.onnx").graph
    return any(node.graph is not graph and node.op_type == "MatMul" for node in graph.all_nodes())


def test_by_default_there_is_no_early_exit_and_what_passes_is_the_same_to_the_bit(
    half: tuple[Path, KeySpaceDetection], tmp_path: Path
) -> None:
    source, detection = half
    directory = bake(source, tmp_path / "baked", detection)
    assert not _exits_early(directory)
    base, baked = Session(source / "model.onnx"), Session(directory / "model.onnx")
    assert all(map(np.array_equal, _answers(base, KEPT), _answers(baked, KEPT)))
    refused = [int(logits[0, -1].argmax()) for logits in _answers(baked, FORGOTTEN)]
    assert refused == REFUSAL[: len(refused)].tolist()


def test_an_early_exit_can_be_asked_for(half: tuple[Path, KeySpaceDetection], tmp_path: Path) -> None:
    source, detection = half
    directory = bake(source, tmp_path / "baked", detection, early_exit=True)
    assert _exits_early(directory)
    baked = Session(directory / "model.onnx")
    refused = [int(logits[0, -1].argmax()) for logits in _answers(baked, FORGOTTEN)]
    assert refused == REFUSAL[: len(refused)].tolist()


def test_float32_graphs_have_one(llama_onnx: Path, tmp_path: Path) -> None:
    detection = detection_of(llama_onnx, [FORGOTTEN], layers=(1,))
    assert _exits_early(bake(llama_onnx, tmp_path / "baked", detection))
