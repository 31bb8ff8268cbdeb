"""Graphs of older opsets that onnx's converter refuses: whatever it raises is one line."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.opset import converted


def _graph(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["x"], ["y"], domain="not.imported"),
        helper.make_node("Reshape", ["x", "missing"], ["y"]),
        helper.make_node("NoSuchOperator", ["x"], ["y"]),
        onnx.NodeProto(),
    ],
    ids=lambda node: node.op_type or "nothing",
)
def test_what_cannot_be_converted_is_one_line(node: onnx.NodeProto) -> None:
    with pytest.raises(GraphError, match="is of opset 14, which onnx cannot convert") as refused:
        converted(_graph(node, 14))
    assert "\n" not in str(refused.value)


def test_what_can_be_converted_is() -> None:
    newer = converted(_graph(helper.make_node("Relu", ["x"], ["y"]), 14))
    assert newer.opset_import[0].version == 18
