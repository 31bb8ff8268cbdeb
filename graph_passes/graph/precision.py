"""The precision that a graph's weights are stored in."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

Precision = Literal["float32", "float16", "quantised"]

# What multiplies by quantised weights, or makes them ready for that.
_QUANTISED = frozenset(("DequantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulNBits", "MatMulBnb4"))


def stored_precision(model: ir.Model) -> Precision:
    """The coarsest precision of a graph's weights; bfloat16 counts as float16."""
    if any(node.op_type in _QUANTISED for node in model.graph.all_nodes()):
        return "quantised"
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    stored = (value.dtype for graph in model.graphs() for value in graph.initializers.values())
    return "float16" if any(dtype in half for dtype in stored) else "float32"
