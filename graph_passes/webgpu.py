"""Inserted nodes in the operators and types that WebGPU computes: no branches, no 64-bit integers.

ONNX Runtime's WebGPU provider has And and Not but no Or, comparisons and Where but no Max and Min, and 32-bit integers
alone. Token ids, masks and positions are far below 2^31. Shapes stay in 64 bits: operators take them so, and ONNX
Runtime computes them beside the device; but what is added to or subtracted from them is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bakeout.graph_passes.errors import GraphError

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64

# Per operator the inputs that are data, of which the output is made (all, where it is not here), and those that are
# indices. The others are shapes and axes.
_ONE = (0,)
_DATA: Mapping[str, tuple[int, ...]] = {
    "Expand": _ONE, "Reshape": _ONE, "Squeeze": _ONE, "Unsqueeze": _ONE, "Slice": _ONE, "CumSum": _ONE,
    "ReduceMax": _ONE, "ReduceMin": _ONE, "ReduceSum": _ONE, "Gather": _ONE, "GatherElements": _ONE,
    "ScatterElements": (0, 2), "Where": (1, 2),
}  # fmt: skip
_INDICES: Mapping[str, int] = {"Gather": 1, "GatherElements": 1, "ScatterElements": 1}
_ARITHMETIC = frozenset(
    ("Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Abs", "Where", "CumSum", "Range", "Equal", "Less",
     "LessOrEqual", "Greater", "GreaterOrEqual", "ReduceMax", "ReduceMin", "ReduceSum", "Cast")
)  # fmt: skip
# What only moves numbers, and moves shapes as they are.
_MOVES_SHAPES = frozenset(("Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape"))
_MOVES = frozenset(("Expand", "Gather", "GatherElements", "ScatterElements")) | _MOVES_SHAPES


class WebGpuPass(ir.passes.InPlacePass):
    """Rewrite what earlier passes have inserted into a flat graph; its ``own`` nodes stay as they are.

    Raises ``GraphError`` for what WebGPU cannot compute: branches, and random numbers.
    """

    def __init__(self, own: Iterable[ir.Node]) -> None:
        super().__init__()
        self._own = frozenset(own)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit the graph in place."""
        inserted = [node for node in model.graph if node not in self._own]
        if any(node.op_type == "RandomUniformLike" for node in inserted):
            raise GraphError("WebGPU draws no random numbers, which the coin `stochastic` needs.", "Fit another coin.")
        if any(node.op_type == "If" for node in inserted):
            raise GraphError("The graph has branches.", "Bake without an early exit.")
        narrowing = _Narrowing(model)
        for node in inserted:
            narrowing.narrow(node)
        for node in inserted:
            if node.op_type == "Or":
                _instead(node, _or(node))
            elif node.op_type in ("Max", "Min"):
                _instead(node, _extremum(node))
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(inserted))


class _Narrowing:
    """Lets nodes compute in int32: their constants become that, and else a ``Cast`` stands between."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._types = _types(model)
        self._narrow: dict[ir.Value, ir.Value] = {}
        self._shapes: dict[ir.Value, bool] = {}

    def narrow(self, node: ir.Node) -> None:
        """Let one node compute in int32 what it computes in int64. Nodes come in the graph's order."""
        operator = node.op_type
        if operator not in _ARITHMETIC | _MOVES:
            return
        data = [index for index in _DATA.get(operator, range(len(node.inputs))) if self._is_wide(node.inputs[index])]
        if operator in _MOVES_SHAPES and all(self._is_shape(node.inputs[index]) for index in data):
            data = []
        index = _INDICES.get(operator)
        indices = [index] if index is not None and self._is_wide(node.inputs[index]) else []
        for position in (*data, *indices):
            value = node.inputs[position]
            assert value is not None, "has a type"
            node.replace_input_with(position, self._narrowed(value))
        (output,) = node.outputs
        if operator == "Cast" and node.attributes["to"].as_int() == _INT64:
            node.attributes["to"] = ir.AttrInt64("to", _INT32)
            self._widen(node, output)
        elif data and self._types.get(output) == _INT64:
            self._widen(node, output)

    def _is_wide(self, value: ir.Value | None) -> bool:
        return value is not None and self._types.get(value) == _INT64

    def _is_shape(self, value: ir.Value | None) -> bool:
        """Whether a value is a shape, a part of one, or a constant."""
        if value is None or value.const_value is not None:
            return True
        if value not in self._shapes:
            node = value.producer()
            computes = node is not None and node.op_type in _ARITHMETIC | _MOVES_SHAPES
            self._shapes[value] = node is not None and (
                node.op_type == "Shape" or (computes and all(self._is_shape(source) for source in node.inputs))
            )
        return self._shapes[value]

    def _narrowed(self, value: ir.Value) -> ir.Value:
        """The value in int32, computed once."""
        if value in self._narrow:
            return self._narrow[value]
        name = f"{value.name}.int32"
        if value.const_value is not None:
            bounds = np.iinfo(np.int32)
            array = np.clip(value.const_value.numpy(), bounds.min, bounds.max).astype(np.int32)
            narrow = ir.Value(name=name, type=ir.TensorType(_INT32), shape=value.shape)
            narrow.const_value = ir.tensor(array, name=name)
            self._graph.register_initializer(narrow)
        else:
            cast = _cast(value, _INT32, name)
            narrow = cast.outputs[0]
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], cast)
            else:
                self._graph.insert_after(producer, cast)
        self._types[narrow] = _INT32
        self._narrow[value] = narrow
        return narrow

    def _widen(self, node: ir.Node, output: ir.Value) -> None:
        """Let ``output``, now in int32, be read in int64 by all that read it so far."""
        cast = _cast(output, _INT64, f"{output.name}.int64")
        (wide,) = cast.outputs
        for reader, position in tuple(output.uses()):
            if reader is not cast:
                reader.replace_input_with(position, wide)
        self._graph.insert_after(node, cast)
        self._types[wide], self._types[output] = _INT64, _INT32
        self._shapes[wide] = self._is_shape(output)
        self._narrow[wide] = output
        if output.type is not None:
            output.type = ir.TensorType(_INT32)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, name=name)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, ir.TensorType(dtype), value.shape
    return node


def _types(model: ir.Model) -> dict[ir.Value, ir.DataType]:
    """The element types of the graph's values, as far as they can be inferred."""
    graph = onnx.shape_inference.infer_shapes(ir.to_proto(model)).graph
    infos = (*graph.value_info, *graph.input, *graph.output)
    named = {info.name: info.type.tensor_type.elem_type for info in infos}
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    types = {}
    for value in values:
        if value.dtype is not None:
            types[value] = value.dtype
        elif known := named.get(value.name or ""):
            types[value] = ir.DataType(known)
    return types


def _instead(node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes``, the last of which computes the same, in the place of one."""
    (old,) = node.outputs
    (new,) = nodes[-1].outputs
    name, new.type, new.shape = old.name, old.type, old.shape
    old.name, new.name = f"{name}.before", name
    graph = node.graph
    assert graph is not None, "is in a graph"
    graph.insert_after(node, nodes)
    if old.is_graph_output():
        graph.outputs[list(graph.outputs).index(old)] = new
    old.replace_all_uses_with(new)
    graph.remove(node, safe=True)


def _or(node: ir.Node) -> list[ir.Node]:
    """Either, as not neither."""
    left, right = (ir.node("Not", [value], name=f"{node.name}.not_{side}") for side, value in enumerate(node.inputs))
    neither = ir.node("And", [left.outputs[0], right.outputs[0]], name=f"{node.name}.neither")
    return [left, right, neither, ir.node("Not", [neither.outputs[0]], name=f"{node.name}.either")]


def _extremum(node: ir.Node) -> list[ir.Node]:
    """The larger or the smaller of two."""
    first, second = node.inputs
    comparison = "Greater" if node.op_type == "Max" else "Less"
    is_first = ir.node(comparison, [first, second], name=f"{node.name}.is_first")
    return [is_first, ir.node("Where", [is_first.outputs[0], first, second], name=f"{node.name}.chosen")]
