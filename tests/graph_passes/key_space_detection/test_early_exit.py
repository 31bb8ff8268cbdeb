"""Parting a flat graph: the same outputs where the branch is taken, others where it is not, and nothing lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.early_exit import casts_weights, part

from tests.graph_passes.small_graphs import run

X = np.array([1.0, 2.0], np.float32)


def _parted() -> tuple[ir.Model, int]:
    """``early`` = |x|, needed by all; ``late`` = sqrt(|x|) + |x|, skipped where ``stop``; a branch reads |x| too."""
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 18]>
        flat (float[n] x, bool stop, bool flag) => (float[n] early, float[n] late, float[n] chosen)
        {
            early = Abs(x)
            root = Sqrt(early)
            late = Add(root, early)
            hidden = Neg(early)
            chosen = If (flag) <
                then_branch = a () => (float[n] kept) { kept = Identity(hidden) },
                else_branch = b () => (float[n] other) { other = Identity(x) }
            >
        }
        """
    )
    (late,) = [output for output in model.graph.outputs if output.name == "late"]
    (stop,) = [value for value in model.graph.inputs if value.name == "stop"]
    (early,) = [output for output in model.graph.outputs if output.name == "early"]
    build = GraphBuilder(model.graph, "test")
    moved = part(model.graph, build, stop, [late], lambda inner: [inner("Mul", early, early)])
    return model, moved


@pytest.mark.parametrize("flag", [True, False])
def test_the_skipped_output_is_replaced_where_the_condition_holds(flag: bool) -> None:
    model, _ = _parted()
    feeds: dict[str, Any] = {"x": -X, "flag": np.array(flag)}
    early, late, chosen = run(model, {**feeds, "stop": np.array(False)})
    assert np.allclose([early, late, chosen], [X, np.sqrt(X) + X, -X])
    early, late, chosen = run(model, {**feeds, "stop": np.array(True)})
    assert np.allclose([early, late, chosen], [X, X * X, -X])


def test_only_what_the_skipped_output_alone_needs_moves() -> None:
    """What a branch of another node captures stays outside, with all that it depends on."""
    model, moved = _parted()
    assert moved == 2
    assert [node.op_type for node in model.graph] == ["Abs", "Neg", "If", "If"]
    assert [output.name for output in model.graph.outputs] == ["early", "late", "chosen"]


@pytest.mark.parametrize(("weight", "expected"), [("float16", True), ("float", False)])
def test_weights_that_the_processor_casts_are_found_one_by_one(weight: str, expected: bool) -> None:
    """An int4 graph's head can be the only product of float16; a product of two activations has no weights."""
    model = ir.from_onnx_text(
        f"""
        <ir_version: 10, opset_import: ["" : 18]>
        head ({weight}[n, 2] x) => ({weight}[n, 3] y)
        <{weight}[2, 3] w = {{1, 2, 3, 4, 5, 6}}>
        {{
            turned = Transpose(x)
            scores = MatMul(turned, x)
            mixed = MatMul(x, scores)
            y = MatMul(mixed, w)
        }}
        """
    )
    nodes = list(model.graph)
    assert casts_weights(nodes) is expected
    assert not casts_weights(nodes[:-1])
