"""Where in a decoder graph the weights of its linears lie: initialisers, and how W lies in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer
from bakeout.graph_passes.graph.linear import Linear, as_linear, as_stacked_linear
from bakeout.models.plan import Role

# The permutations that swap a weight's two axes, alone or in a stack.
_SWAPS = ((1, 0), (0, 2, 1))
EDITABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class WeightLocation:
    """A weight W [out, in] of ``linear`` in an initialiser.

    ``transposed``: the initialiser is [in, out]. ``rows``: the part of its out axis that is W, None for all of it.
    ``slot``: the place of W in a stack of weights, along the initialiser's first axis. A vector [n] is a W [n, 1].
    """

    linear: ir.Node
    initialiser: ir.Value
    transposed: bool
    rows: slice | None
    shape: tuple[int, int]
    slot: int | None = None

    def weight_in(self, values: NDArray[Any]) -> NDArray[Any]:
        """W in the values of the initialiser: a view."""
        own = values if self.slot is None else values[self.slot]
        if own.ndim == 1:
            own = own[:, None]
        weight = own.T if self.transposed else own
        return weight if self.rows is None else weight[self.rows]


def locate_weight(layer: FeedForwardLayer, role: Role, name: str | None = None) -> WeightLocation:
    """Find the weight of ``role`` in ``layer``. Shapes and types are looked at, never the weight.

    ``name``: what errors call the layer, by its number if nothing else. Raises ``GraphError`` where there is none
    (``up`` of an ungated FFL), where it is quantised or of another type that cannot be edited, where it is computed
    from more than one initialiser, and where something else reads it too.
    """
    where = f"{(name or f'layer {layer.index}').capitalize()}, {role}"
    node = {"gate": layer.gate, "up": layer.up, "down": layer.down}[role]
    if node is None:
        raise GraphError(
            f"{where}: the feed-forward layer is ungated, and has no such weight.",
            "Edit its 'gate' (the in-projection) or 'down'.",
        )
    linear = as_linear(node) if layer.slot is None else as_stacked_linear(node)
    assert linear is not None, "the ends of a feed-forward layer are linears"
    initialiser, transposed = _initialiser(node, where)
    rows = None
    if role != "down" and linear.outputs != layer.width:
        rows = _rows(layer, role, where)
    outputs = linear.outputs if rows is None else layer.width
    return WeightLocation(node, initialiser, transposed, rows, (outputs, linear.inputs), layer.slot)


def locate_in_linear(
    linear: Linear, where: str, rows: slice | None = None, also: Collection[ir.Node] = ()
) -> WeightLocation:
    """The weight of a linear, or those ``rows`` of it. ``where``: what errors call it. Raises as ``locate_weight``.

    ``also``: nodes that may read the weight too.
    """
    initialiser, transposed = _initialiser(linear.node, where, also)
    outputs = linear.outputs if rows is None else rows.stop - rows.start
    return WeightLocation(linear.node, initialiser, transposed, rows, (outputs, linear.inputs))


def _initialiser(node: ir.Node, where: str, also: Collection[ir.Node] = ()) -> tuple[ir.Value, bool]:
    """The initialiser that a linear's weight comes from, and whether it is [in, out]."""
    if node.op_type not in ("MatMul", "Gemm"):
        raise _quantised(node, where)
    if node.attributes.get_float("alpha", 1.0) != 1.0:
        raise GraphError(f"{where}: {node.name} multiplies its product by a constant.")
    value = node.inputs[1]
    transposed = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
    while value is not None and value.const_value is None:
        require_one_reader(value, where, also)
        producer = value.producer()
        if producer is None or producer.op_type not in ("Transpose", "Cast", "Identity", "DequantizeLinear"):
            break
        if producer.op_type == "DequantizeLinear":
            raise _quantised(producer, where)
        if producer.op_type == "Transpose" and tuple(producer.attributes.get_ints("perm", (1, 0))) in _SWAPS:
            transposed = not transposed
        value = producer.inputs[0]
    if value is None or value.const_value is None:
        raise GraphError(f"{where}: the weight of {node.name} is not an initialiser.")
    require_one_reader(value, where, also)
    if value.const_value.dtype not in EDITABLE:
        raise GraphError(f"{where}: {value.name} is {value.const_value.dtype}, not float32, float16 or bfloat16.")
    return value, transposed


def require_one_reader(value: ir.Value, where: str, also: Collection[ir.Node] = ()) -> None:
    """Raise ``GraphError`` where more than one node reads a value beside those of ``also``: all would read the edit."""
    if len([node for node, _ in value.uses() if node not in also]) > 1 or value.is_graph_output():
        raise GraphError(
            f"{where}: its weight {value.name} is read by other nodes too, which an edit would change with it.",
            "Export the model with a copy of each weight.",
        )


def _quantised(node: ir.Node, where: str) -> GraphError:
    return GraphError(
        f"{where}: the weight of {node.name} ({node.op_type}) is quantised: a small change would be lost, and what was "
        "forgotten could stay.",
        "Bake into the unquantised graph, then quantise, and measure again what is forgotten.",
    )


def _rows(layer: FeedForwardLayer, role: Role, where: str) -> slice:
    """Where in the output of a fused linear the half of ``role`` lies."""
    assert layer.up_output is not None, "a fused linear has two halves"
    halves = {"gate": layer.pre_activation, "up": layer.up_output}
    steps = {_step(half) for half in halves.values()}
    starts = {name: _offset(half, layer.width) for name, half in halves.items()}
    if steps == {2} and set(starts.values()) == {0, 1}:
        return slice(starts[role], None, 2)
    # Exporters compute where the second half begins; that the first begins at 0 is a constant.
    if steps == {1} and 0 in starts.values() and set(starts.values()) - {0} in ({None}, {layer.width}):
        start = 0 if starts[role] == 0 else layer.width
        return slice(start, start + layer.width)
    raise GraphError(
        f"{where}: it is no half of the fused linear, or begins at a place that is computed.",
        "Export the model with halves that begin at constant places, or with separate linears.",
    )


def _offset(half: ir.Value, width: int) -> int | None:
    """Where a Slice, or one output of a Split, begins in its input; None if that is computed."""
    node = half.producer()
    if node is None:
        return None
    if node.op_type == "Split":
        return list(node.outputs).index(half) * width
    start = _integer(node.inputs[1]) if node.op_type == "Slice" else None
    # Negative ones count from the end.
    return None if start is None else start % (2 * width)


def _step(half: ir.Value) -> int | None:
    """The step of a Slice; 1 of an output of a Split, None if it is computed."""
    node = half.producer()
    is_stepped = node is not None and node.op_type == "Slice" and len(node.inputs) > 4 and node.inputs[4] is not None
    return _integer(node.inputs[4]) if node is not None and is_stepped else 1


def _integer(value: ir.Value | None) -> int | None:
    """The one integer that a constant holds."""
    if value is None:
        return None
    if value.const_value is not None:
        return int(value.const_value.numpy().reshape(-1)[0])
    node = value.producer()
    if node is None or node.op_type != "Constant":
        return None
    (attribute,) = node.attributes.values()
    if attribute.type == ir.AttributeType.TENSOR:
        return int(attribute.as_tensor().numpy().reshape(-1)[0])
    return int(attribute.as_ints()[0]) if attribute.type == ir.AttributeType.INTS else None
