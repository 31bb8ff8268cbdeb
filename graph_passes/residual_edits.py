"""Residual additions and projections as graph nodes: directions added to, or projected out of, the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.graph.graph_file import graph_digest
from bakeout.graph_passes.residual_stream import SUM_OUTPUT, ResidualSum, residual_sum
from bakeout.models.plan import Floats32, LayerDirection, ResidualAddition, ResidualEdit, ResidualProjection
from bakeout.models.plan.receipt import Receipt

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# The constant of a layer.
_DIRECTION = "direction"
# A norm that is 0 divides nothing.
_SMALLEST = 1e-30
# What a fused addition becomes once its sum is changed before it is normalised.
_NORM_OF = {
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
    "SkipLayerNormalization": "LayerNormalization",
}
# One edit of one layer: its place in the plan, itself, and the direction.
_Move = tuple[int, ResidualEdit, LayerDirection]


def name_prefix(index: int, layer: int) -> str:
    """What the names of all that intervention ``index`` puts behind a block begin with."""
    return f"bakeout.residual_{index}.layers.{layer}"


class ResidualEditsPass(ir.passes.InPlacePass):
    """Put all the residual edits of a plan, in its order, behind the blocks of a decoder graph.

    An addition is one Add of a constant. Where norms are kept, and for projections, dot products and norms are
    computed in float32. A graph that adds and normalises in one operator keeps it where directions are only added;
    otherwise the operator is split into an addition and a norm.

    ``edits``: each with its place in the plan. ``receipts``, once the pass has run: one per edit and layer, ``tensor``
    what is changed, and ``observed`` in ``detail`` the key vector that the canary compares. Raises ``GraphError`` where
    the graph lacks a layer or a residual stream, or a direction leaves the range of float32.
    """

    def __init__(self, edits: Sequence[tuple[int, ResidualEdit]]) -> None:
        super().__init__()
        self.edits = tuple(edits)
        self.receipts: list[Receipt] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit the graph in place."""
        layers = read_anatomy(model).layers
        moves: dict[int, list[_Move]] = {}
        for index, edit in self.edits:
            for placed in edit.layers:
                _require_fit(edit, placed, layers)
                moves.setdefault(placed.layer, []).append((index, edit, placed))
        # All are found before the first is changed.
        sums = {layer: residual_sum(model.graph, layers[layer]) for layer in moves}
        before = graph_digest(model)
        edited = {layer: _change(model.graph, sums[layer], layers[layer], own) for layer, own in moves.items()}
        after = graph_digest(model)
        self.receipts = [
            Receipt(
                intervention=index,
                kind=edit.kind,
                layer=layer,
                node=edited[layer][0],
                tensor=edited[layer][1],
                count=1,
                before=before,
                after=after,
                detail={**edit.figures(), "observed": layers[layer].key_vector.name or ""},
            )
            for layer, own in moves.items()
            for index, edit, _ in own
        ]
        return ir.passes.PassResult(model, modified=True)


def _require_fit(edit: ResidualEdit, placed: LayerDirection, layers: Sequence[FeedForwardLayer]) -> None:
    remedy = "Bake the plan into the model it was fitted on."
    if placed.layer >= len(layers):
        raise GraphError(f"{edit.title} names layer {placed.layer}, but the graph has {len(layers)}.", remedy)
    layer = layers[placed.layer]
    if len(placed.direction) != layer.hidden:
        raise GraphError(
            f"{edit.title}, layer {placed.layer}: a direction of {len(placed.direction)} elements, and a residual "
            f"stream of {layer.hidden}.",
            remedy,
        )
    if layer.dtype not in _FLOATS:
        raise GraphError(f"The residual stream is {layer.dtype}, not float32, float16 or bfloat16.")


def _change(graph: ir.Graph, end: ResidualSum, layer: FeedForwardLayer, moves: Sequence[_Move]) -> tuple[str, str]:
    """Change the stream that ``end`` completes by all ``moves``: the names of its node, and of what they read."""
    node_name = end.node.name or ""
    if end.fused and all(_only_adds(edit) for _, edit, _ in moves):
        start = end.written
        nodes, moved = _moved(graph, start, layer, moves)
        graph.insert_before(end.node, nodes)
        end.node.replace_input_with(end.position, moved)
        return node_name, start.name or ""
    start = _split(graph, end) if end.fused else end.node.outputs[0]
    readers = tuple(start.uses())
    nodes, moved = _moved(graph, start, layer, moves)
    producer = start.producer()
    assert producer is not None, "a sum is computed by the graph"
    graph.insert_after(producer, nodes)
    for reader, position in readers:
        reader.replace_input_with(position, moved)
    return node_name, start.name or ""


def _moved(
    graph: ir.Graph, stream: ir.Value, layer: FeedForwardLayer, moves: Sequence[_Move]
) -> tuple[list[ir.Node], ir.Value]:
    nodes: list[ir.Node] = []
    value = stream
    for index, edit, placed in moves:
        build = GraphBuilder(graph, name_prefix(index, placed.layer))
        value = _NODES[type(edit)](build, value, edit, placed.direction, layer.dtype)
        value.type, value.shape = ir.TensorType(layer.dtype), stream.shape
        nodes += build.nodes
    return nodes, value


def _split(graph: ir.Graph, end: ResidualSum) -> ir.Value:
    """Split a fused addition and norm, and return the sum."""
    node = end.node
    first, second, *scales = node.inputs
    bias = scales.pop() if len(scales) > (2 if node.op_type == "SkipLayerNormalization" else 1) else None
    build = GraphBuilder(graph, f"bakeout.{node.name}")
    assert first is not None and second is not None, "an addition has two operands"
    stream = build("Add", first, second)
    if bias is not None:
        stream = build("Add", stream, bias)
    stream.type, stream.shape = first.type, first.shape
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    own = [scale for scale in scales if scale is not None]
    normed = build(_NORM_OF[node.op_type], stream, *own, axis=-1, epsilon=epsilon)
    old = list(node.outputs)
    graph.insert_before(node, build.nodes)
    for before, after in ((old[0], normed), *((output, stream) for output in old[SUM_OUTPUT:])):
        name = before.name
        after.type, after.shape = after.type or before.type, after.shape or before.shape
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        before.name, after.name = f"{name}.before", name
    graph.remove(node, safe=True)
    return stream


def _only_adds(edit: ResidualEdit) -> bool:
    return _NODES[type(edit)] is _addition and not edit.figures()["keep_norm"]


def direction_constants(intervention: ResidualEdit, index: int, dtype: ir.DataType) -> dict[str, NDArray[Any]]:
    """The directions of every layer by their names in a graph whose activations are ``dtype``."""
    constants = {}
    for placed in intervention.layers:
        scratch = ir.Graph([], [], nodes=[])
        build = GraphBuilder(scratch, name_prefix(index, placed.layer))
        _NODES[type(intervention)](build, ir.Value(name="stream"), intervention, placed.direction, dtype)
        name = f"{name_prefix(index, placed.layer)}.{_DIRECTION}"
        tensor = scratch.initializers[name].const_value
        assert tensor is not None, "an initialiser has a value"
        constants[name] = tensor.numpy()
    return constants


def _addition(
    build: GraphBuilder, stream: ir.Value, edit: ResidualAddition, direction: Floats32, dtype: ir.DataType
) -> ir.Value:
    with np.errstate(over="ignore"):
        scaled = (edit.coefficient * direction.astype(np.float64)).astype(np.float32)
        added = scaled.astype(dtype.numpy())
    if not edit.keep_norm:
        _require_finite(edit, added, dtype)
        return build("Add", stream, build.constant(added, _DIRECTION), name="moved")
    _require_finite(edit, scaled, ir.DataType.FLOAT)
    exact = build.cast(stream, ir.DataType.FLOAT)
    moved = build("Add", exact, build.constant(scaled, _DIRECTION))
    smallest = build.constant(np.array(_SMALLEST, np.float32), "smallest")
    ratio = build("Div", _norm(build, exact), build("Max", _norm(build, moved), smallest))
    return _stored(build, build("Mul", moved, ratio), dtype)


def _projection(
    build: GraphBuilder, stream: ir.Value, edit: ResidualProjection, direction: Floats32, dtype: ir.DataType
) -> ir.Value:
    exact = build.cast(stream, ir.DataType.FLOAT)
    along = build.constant(direction, _DIRECTION)
    share = build("ReduceSum", build("Mul", exact, along), [-1], keepdims=1)
    return _stored(build, build("Sub", exact, build("Mul", share, along)), dtype)


def _norm(build: GraphBuilder, value: ir.Value) -> ir.Value:
    return build("Sqrt", build("ReduceSum", build("Mul", value, value), [-1], keepdims=1))


def _stored(build: GraphBuilder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A float32 value as the stream's type, called ``moved``."""
    if dtype == ir.DataType.FLOAT:
        return build("Identity", value, name="moved")
    return build("Cast", value, to=dtype, name="moved")


def _require_finite(edit: ResidualEdit, values: Any, dtype: ir.DataType) -> None:
    if not np.all(np.isfinite(values.astype(np.float32))):
        raise GraphError(f"{edit.title}: a direction leaves the range of {dtype.name}.", "Use a smaller coefficient.")


# The nodes of every kind.
_NODES: Mapping[type[ResidualEdit], Callable[[GraphBuilder, ir.Value, Any, Floats32, ir.DataType], ir.Value]] = {
    ResidualAddition: _addition,
    ResidualProjection: _projection,
}
