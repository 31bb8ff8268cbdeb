"""Graphs of older opsets, converted by onnx's own version converter."""

from __future__ import annotations

import onnx
from onnx import version_converter

from bakeout.graph_passes.errors import GraphError

# Interventions are written in its operators.
OLDEST_OPSET = 18


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's operators that a graph has; 0 where it has none."""
    return next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` in opset 18. Tensors in data files stay there. Raises ``GraphError`` where onnx cannot convert it."""
    opset = opset_of(model)
    remedy = f"Export it with opset {OLDEST_OPSET} or later."
    if model.functions:
        raise GraphError(f"The graph is of opset {opset} and has functions, which onnx does not convert.", remedy)
    try:
        newer = version_converter.convert_version(model, OLDEST_OPSET)
    # The converter, shape inference and the checker raise errors that have nothing but Exception in common.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip().splitlines() or ["?"])[0]
        raise GraphError(f"The graph is of opset {opset}, which onnx cannot convert ({reason}).", remedy) from None
    # The converter keeps no reference to a data file.
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in newer.graph.initializer:
        if tensor.name in kept:
            tensor.CopyFrom(kept[tensor.name])
    return newer
