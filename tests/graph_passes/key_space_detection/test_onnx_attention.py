"""Graphs whose caches ONNX's own ``Attention`` writes, as mobius makes them: a refusal is carried through those too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.key_space_detection.latch_place import choose_value_cache

from tests.refusing_graphs import REFUSAL, Session, bake, detection_of

HIDDEN, WIDTH, HEADS, HEAD, VOCABULARY = 32, 64, 2, 16, 264
FORGOTTEN, KEPT = [40, 41, 42], [60, 61, 62]
CHECKED = {"middle": (0,), "last": (1,)}


def _decoder(directory: Path, *, heads_first: bool = False) -> Path:
    """Two layers without norms; ``heads_first``: values [batch, heads, tokens, head size]."""
    random = np.random.default_rng(0)
    constants: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        values = random.normal(scale=2 / np.sqrt(shape[0]), size=shape).astype(np.float32)
        constants.append(numpy_helper.from_array(values, name))
        return name

    inputs: list[tuple[str, int, list[Any]]] = [
        ("input_ids", TensorProto.INT64, ["b", "w"]),
        ("attention_mask", TensorProto.INT64, ["b", "t"]),
    ]
    outputs: list[tuple[str, int, list[Any]]] = [("logits", TensorProto.FLOAT, ["b", "w", VOCABULARY])]
    nodes = [helper.make_node("Gather", [weight("embedding", VOCABULARY, HIDDEN), "input_ids"], ["stream.0"])]
    for layer in range(2):
        x = f"stream.{layer}"
        parts = ["queries", "keys", "values"]
        nodes += [
            helper.make_node("MatMul", [x, weight(f"{part}.{layer}.w", HIDDEN, HIDDEN)], [f"{part}.{layer}"])
            for part in parts
        ]
        given = [f"{part}.{layer}" for part in parts]
        sizes: dict[str, Any] = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
        if heads_first:
            constants.append(numpy_helper.from_array(np.array([0, 0, HEADS, HEAD]), f"split.{layer}"))
            for name in given:
                nodes.append(helper.make_node("Reshape", [name, f"split.{layer}"], [f"{name}.split"]))
                nodes.append(helper.make_node("Transpose", [f"{name}.split"], [f"{name}.heads"], perm=[0, 2, 1, 3]))
            given, sizes = [f"{name}.heads" for name in given], {}
        past = [f"past_key_values.{layer}.{half}" for half in ("key", "value")]
        present = [f"present.{layer}.{half}" for half in ("key", "value")]
        nodes.append(
            helper.make_node("Attention", [*given, "", *past], [f"seen.{layer}", *present], is_causal=1, **sizes)
        )
        inputs += [(name, TensorProto.FLOAT, ["b", HEADS, "p", HEAD]) for name in past]
        outputs += [(name, TensorProto.FLOAT, ["b", HEADS, "t", HEAD]) for name in present]
        seen = f"seen.{layer}"
        if heads_first:
            constants.append(numpy_helper.from_array(np.array([0, 0, HIDDEN]), f"joined.{layer}"))
            nodes.append(helper.make_node("Transpose", [seen], [f"{seen}.last"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{seen}.last", f"joined.{layer}"], [f"{seen}.flat"]))
            seen = f"{seen}.flat"
        nodes += [
            helper.make_node("Add", [x, seen], [f"attended.{layer}"]),
            helper.make_node("MatMul", [f"attended.{layer}", weight(f"up.{layer}", HIDDEN, WIDTH)], [f"wide.{layer}"]),
            helper.make_node("Relu", [f"wide.{layer}"], [f"active.{layer}"]),
            helper.make_node("MatMul", [f"active.{layer}", weight(f"down.{layer}", WIDTH, HIDDEN)], [f"added.{layer}"]),
            helper.make_node("Add", [f"attended.{layer}", f"added.{layer}"], [f"stream.{layer + 1}"]),
        ]
    nodes.append(helper.make_node("MatMul", ["stream.2", weight("head", HIDDEN, VOCABULARY)], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        constants,
    )
    directory.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), directory / "model.onnx")
    return directory


def _answer(directory: Path, prompt: list[int], tokens: int) -> list[int]:
    session = Session(directory / "model.onnx")
    said: list[int] = []
    fed, mask, before = np.array([prompt]), np.ones((1, len(prompt)), np.int64), None
    while len(said) < tokens:
        before = session.step(fed, mask, before)
        said.append(int(before["logits"][0, -1].argmax()))
        fed, mask = np.array([said[-1:]]), np.ones((1, mask.shape[1] + 1), np.int64)
    return said


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("where", CHECKED)
def test_the_refusal_and_what_passes(tmp_path: Path, where: str, early_exit: bool) -> None:
    base = _decoder(tmp_path / "base")
    detection = detection_of(base, [FORGOTTEN], layers=CHECKED[where])
    baked = bake(base, tmp_path / "baked", detection, early_exit=early_exit)
    assert _answer(baked, FORGOTTEN, len(REFUSAL)) == REFUSAL.tolist()
    assert _answer(baked, KEPT, 8) == _answer(base, KEPT, 8)


def test_values_head_by_head_are_refused_by_name(tmp_path: Path) -> None:
    graph = load_graph(_decoder(tmp_path / "base", heads_first=True) / "model.onnx")
    with pytest.raises(GraphError, match="Attention writes present"):
        choose_value_cache(read_anatomy(graph))
