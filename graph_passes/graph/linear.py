"""Linears of a graph: products with a constant weight, plain or quantised. Shapes and types alone, never the weight."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

_PASSES_A_CONSTANT_ON = frozenset(("Transpose", "Cast", "Identity", "DequantizeLinear"))
# ONNX Runtime's products with weights that are quantised block by block, whose scales are the third input.
_IN_BLOCKS = frozenset(("MatMulNBits", "MatMulBnb4"))


@dataclass(frozen=True, eq=False)
class Linear:
    """``output[..., N] = data[..., K] @ weight`` (plus a bias inside the node, for some). ``dtype`` of the output.

    ``stack``: how many weights there are, one for each entry of the data's first axis.
    """

    node: ir.Node
    data: ir.Value
    inputs: int
    outputs: int
    dtype: ir.DataType
    stack: int = 1

    @property
    def output(self) -> ir.Value:
        """The product, [..., outputs]."""
        return self.node.outputs[0]


def as_linear(node: ir.Node) -> Linear | None:
    """The linear that a node computes: MatMul or Gemm with a constant weight, MatMulNBits or MatMulBnb4, or the Mul in
    which a dynamically quantised product ends; None for others.
    """
    if node.domain == "com.microsoft" and node.op_type in _IN_BLOCKS:
        data, scales = node.inputs[0], node.inputs[2]
        if data is None or scales is None or scales.const_value is None:
            return None
        sizes = node.attributes["K"].as_int(), node.attributes["N"].as_int()
        return Linear(node, data, *sizes, scales.const_value.dtype)
    if (node.domain, node.op_type) == ("", "Mul"):
        return _dynamically_quantised(node)
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None or (described := _constant(weight)) is None or len(described[0]) != 2:
        return None
    (inputs, outputs), dtype = described
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return None
        if node.attributes.get_int("transB", 0):
            inputs, outputs = outputs, inputs
    return Linear(node, data, inputs, outputs, dtype)


def as_stacked_linear(node: ir.Node) -> Linear | None:
    """A MatMul with a constant weight [stack, in, out] as a linear; None for other nodes."""
    if (node.domain, node.op_type) != ("", "MatMul"):
        return None
    data, weight = node.inputs
    if data is None or weight is None or (described := _constant(weight)) is None or len(described[0]) != 3:
        return None
    (stack, inputs, outputs), dtype = described
    return Linear(node, data, inputs, outputs, dtype, stack)


def _dynamically_quantised(node: ir.Node) -> Linear | None:
    """The linear that ends in ``Mul(Cast(MatMulInteger(q, weight, ...)), scales)``, q of a DynamicQuantizeLinear."""
    for operand in node.inputs:
        cast = _produced_by(operand, "Cast")
        product = cast and _produced_by(cast.inputs[0], "MatMulInteger")
        quantised = product and _produced_by(product.inputs[0], "DynamicQuantizeLinear")
        if not cast or not product or not quantised:
            continue
        data, weight = quantised.inputs[0], product.inputs[1]
        if data is not None and weight is not None and (described := _constant(weight)) and len(described[0]) == 2:
            return Linear(node, data, *described[0], ir.DataType(cast.attributes["to"].as_int()))
    return None


def _produced_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of this standard operator that computes a value."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", operator) else None


def constant_size(value: ir.Value) -> int | None:
    """How many elements a constant has; None for what is not constant."""
    described = _constant(value)
    if described is None:
        return None
    size = 1
    for extent in described[0]:
        size *= extent
    return size


def _constant(value: ir.Value) -> tuple[tuple[int, ...], ir.DataType] | None:
    """Shape and type of a constant, seen through nodes that only rearrange, cast or dequantise it."""
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy()), value.const_value.dtype
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Constant":
        return _constant_node(node)
    if node.op_type not in _PASSES_A_CONSTANT_ON:
        return None
    source = node.inputs[0]
    if source is None or (described := _constant(source)) is None:
        return None
    shape, dtype = described
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))
        return tuple(shape[axis] for axis in order), dtype
    if node.op_type == "Cast":
        return shape, ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "DequantizeLinear":
        scale = node.inputs[1]
        if scale is None or (scaled := _constant(scale)) is None:
            return None
        return shape, scaled[1]
    return shape, dtype


def _constant_node(node: ir.Node) -> tuple[tuple[int, ...], ir.DataType]:
    # Not through onnx_ir.convenience.get_const_tensor, which writes a name into the attribute it reads.
    (attribute,) = node.attributes.values()
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tuple(tensor.shape.numpy()), tensor.dtype
    count = (len(attribute.value),) if isinstance(attribute.value, tuple | list) else ()
    return count, ir.DataType.UNDEFINED
