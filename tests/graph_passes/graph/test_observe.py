from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.observe import ObservePass

TEXT = """
    <ir_version: 10, opset_import: ["": 18]>
    early_exit (float[2] x, bool skip) => (float[2] y) {
        doubled = Add(x, x)
        y = If (skip) <
            then_branch = refuse () => (float[2] nothing) { nothing = Sub(x, x) },
            else_branch = go_on () => (float[2] result) {
                tripled = Add(doubled, x)
                result = Add(tripled, x)
            }
        >
    }
"""
X = np.array([1.0, 2.0], dtype=np.float32)


def _run(model: ir.Model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    feeds = {name: value for name, value in inputs.items() if name in wanted}
    return dict(zip(names, session.run(None, feeds), strict=True))


def _model() -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(TEXT))


def test_values_before_the_branch_are_shown_and_nothing_else_changes() -> None:
    model = _model()
    ObservePass(["doubled"])(model)
    for skip in (False, True):
        seen = _run(model, x=X, skip=np.array(skip))
        np.testing.assert_array_equal(seen["doubled"], 2 * X)
        np.testing.assert_array_equal(seen["y"], 0 * X if skip else 4 * X)


def test_values_that_an_early_exit_would_skip_are_always_computed() -> None:
    model = _model()
    ObservePass(["tripled", "doubled", "tripled"])(model)
    seen = _run(model, x=X, skip=np.array(True))
    np.testing.assert_array_equal(seen["tripled"], 3 * X)
    np.testing.assert_array_equal(seen["doubled"], 2 * X)
    np.testing.assert_array_equal(seen["y"], 4 * X)


def test_a_value_that_is_not_there_is_named() -> None:
    with pytest.raises(GraphError, match="quadrupled"):
        ObservePass(["doubled", "quadrupled"])(_model())
