"""Graphs that take token ids and mask in int32, as some converters write them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bakeout.models.plan import Positions

from tests.refusing_graphs import REFUSAL, Array, Session, bake, detection_of

FORGOTTEN, KEPT = [40, 41, 42, 43], [70, 71, 72, 73]


@pytest.fixture(scope="module")
def base(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of optimum's graph whose inputs are in int32, and cast for the nodes that read them."""
    directory = Path(shutil.copytree(llama_onnx, tmp_path_factory.mktemp("int32") / "graph"))
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    graph = model.graph
    for name in ("input_ids", "attention_mask"):
        (value,) = (value for value in graph.input if value.name == name)
        value.type.tensor_type.elem_type = TensorProto.INT32
        for node in graph.node:
            node.input[:] = [f"{name}.wide" if source == name else source for source in node.input]
        graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.INT64))
    onnx.save(model, directory / "model.onnx")
    return directory


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize(
    ("positions", "query_end", "query_start"),
    [
        ("query", (), ()),
        ("query", (42, 43), ()),
        ("mean", (), ()),
        ("mean", (), (41,)),
        ("step", (), ()),
        ("every", (), ()),
    ],
)
def test_the_refusal_and_what_passes(
    llama_onnx: Path,
    base: Path,
    tmp_path: Path,
    positions: Positions,
    query_end: Sequence[int],
    query_start: Sequence[int],
    early_exit: bool,
) -> None:
    detection = detection_of(
        llama_onnx, [FORGOTTEN], layers=(1,), positions=positions, query_end=query_end, query_start=query_start
    )
    bake(base, tmp_path / "baked", detection, early_exit=early_exit)
    onnx.checker.check_model(str(tmp_path / "baked" / "model.onnx"), full_check=True)
    inputs = onnx.load(tmp_path / "baked" / "model.onnx", load_external_data=False).graph.input
    types = {value.name: value.type.tensor_type.elem_type for value in inputs}
    assert types["input_ids"] == types["attention_mask"] == TensorProto.INT32
    baked, unedited = Session(tmp_path / "baked" / "model.onnx"), Session(base / "model.onnx")
    # Alone a refused query leaves the graph early; beside another it does not.
    for prompts in ([FORGOTTEN], [FORGOTTEN, KEPT], [KEPT]):
        said, logits = _answers(baked, prompts)
        for row, prompt in enumerate(prompts):
            if prompt == FORGOTTEN:
                assert said[row].tolist() == REFUSAL.tolist()
            else:
                assert np.array_equal(logits[row], _answers(unedited, prompts, said)[1][row])


def _answers(session: Session, prompts: Sequence[Sequence[int]], given: Array | None = None) -> tuple[Array, Array]:
    """An answer to each prompt, int64 [rows, steps], and all logits, float32 [rows, prompt and steps - 1, vocabulary].

    It has as many tokens as the refusal. They are ``given``, or else the likeliest at each step.
    """
    tokens, before = np.array(prompts, np.int32), None
    mask = np.ones_like(tokens)
    said, logits = [], []
    for step in range(len(REFUSAL)):
        before = session.step(tokens, mask, before)
        logits.append(before["logits"])
        following = before["logits"][:, -1].argmax(axis=-1) if given is None else given[:, step]
        said.append(following)
        tokens = following[:, None].astype(np.int32)
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
    return np.stack(said, axis=1), np.concatenate(logits, axis=1)
