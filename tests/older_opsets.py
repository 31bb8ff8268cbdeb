"""Graphs rewritten as exporters wrote them years ago, which no exporter of today does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper, numpy_helper

# Before it, an operator's axes were an attribute.
_AXES_AS_INPUT = {"Unsqueeze": 13, "Squeeze": 13, "ReduceSum": 13}
# Since which opset an operator has an attribute, whose default does what earlier versions did.
_ATTRIBUTES = {("Reshape", "allowzero"): 14, ("Shape", "start"): 15, ("Shape", "end"): 15}
_LESS_OR_EQUAL = 12


def as_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A decoder of opset 14 in opset 11 to 13: the same computation in the operators of then.

    Softmax has another meaning before opset 13, but for the last axis; the test that uses it compares what is computed.
    """
    older = onnx.ModelProto()
    older.CopyFrom(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in older.graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in older.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    nodes = [rewritten for node in older.graph.node for rewritten in _rewritten(node, opset, constants)]
    del older.graph.node[:]
    older.graph.node.extend(nodes)
    for one in older.opset_import:
        if one.domain == "":
            one.version = opset
    older.ir_version = min(older.ir_version, 7)
    onnx.checker.check_model(older)
    return older


def _rewritten(node: onnx.NodeProto, opset: int, constants: dict[Any, Any]) -> Iterator[onnx.NodeProto]:
    kept = [one for one in node.attribute if opset >= _ATTRIBUTES.get((node.op_type, one.name), 0)]
    del node.attribute[:]
    node.attribute.extend(kept)
    if opset < _AXES_AS_INPUT.get(node.op_type, 0) and len(node.input) == 2:
        axes = [int(axis) for axis in constants[node.input[1]].reshape(-1)]
        node.attribute.append(helper.make_attribute("axes", axes))
        del node.input[1]
    if node.op_type == "LessOrEqual" and opset < _LESS_OR_EQUAL:
        (output,) = node.output
        yield helper.make_node("Greater", node.input, [f"{output}.greater"])
        yield helper.make_node("Not", [f"{output}.greater"], [output])
        return
    yield node
