"""The feed-forward layers (FFLs) of a decoder graph, found by structure.

A *linear* is a product with a constant weight. An FFL is a linear of (F, hidden), ``down``, whose data come through
element-wise and shape nodes, at least one of them an activation, from linears of (hidden, F) or one fused linear of
(hidden, 2F), and from nothing else: norms and attention end the walk. Node names are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from bakeout.graph_passes.graph.linear import Linear, constant_size

# fmt: off
# Comparisons are those of a function in pieces, as xIELU.
_ACTIVATIONS = frozenset((
    "BiasGelu", "Celu", "Elu", "Erf", "FastGelu", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Less", "LessOrEqual", "Mish", "PRelu", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign",
    "Swish", "Tanh", "ThresholdedRelu",
))
ELEMENT_WISE = frozenset((
    "Abs", "Add", "Cast", "CastLike", "Clip", "Div", "Exp", "Identity", "Max", "Min", "Mul", "Neg", "Pow", "Sqrt",
    "Sub", "Where",
))
# fmt: on
RESHAPES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
_REPLACES_SOME = frozenset(("ScatterElements", "ScatterND", "NeuronAdjust"))
# Operators that pass on their first input, moved, in part, or with some elements replaced.
_HANDS_ON = RESHAPES | _REPLACES_SOME | {"Slice", "Split"}
_MEASURES = frozenset(("Shape", "Size"))


@dataclass(frozen=True, eq=False)
class FeedForwardLayer:
    """One FFL.

    ``pre_activation``: output of the gate linear, its bias included, [batch, tokens, F] (of a fused linear: the half
    that is activated). ``up`` and ``up_output``: the other linear of a gated FFL (of a fused one: the same) and what it
    hands on, likewise; None where the FFL is ungated. ``key_vector``: data input of ``down``, F wide: [batch, tokens,
    F], or [batch * tokens, F] where ``down`` is a Gemm. ``width`` is F, ``hidden`` the width of the residual stream,
    ``dtype`` the type of the activations.

    Of an expert, ``tokens`` are the positions in [batch * tokens] that it computes, int64, where these are not all; in
    a stack of experts ``slot`` is its place along the first axis of all these values and weights.
    """

    index: int
    gate: ir.Node
    pre_activation: ir.Value
    up: ir.Node | None
    up_output: ir.Value | None
    key_vector: ir.Value
    down: ir.Node
    width: int
    hidden: int
    dtype: ir.DataType
    tokens: ir.Value | None = None
    slot: int | None = None


def feed_forward_layers(linears: Sequence[Linear]) -> tuple[FeedForwardLayer, ...]:
    """The FFLs among a graph's linears, in topological order. No weight is read, only shapes."""
    sources = _sources(linears)
    layers = [layer for down in linears if (layer := _feed_forward_layer(down, sources)) is not None]
    return tuple(replace(layer, index=index) for index, layer in enumerate(layers))


@dataclass(frozen=True, eq=False)
class _Source:
    """A value that a linear hands on: its whole output, or one part of a fused one."""

    linear: Linear
    parts: int


def _sources(linears: Iterable[Linear]) -> dict[ir.Value, _Source]:
    """What the linears hand on, after their biases and reshapes: a value each, or one per part of a fused linear."""
    sources = {}
    for linear in linears:
        value = linear.output
        while (following := _settles_into(value, linear.outputs * linear.stack)) is not None:
            value = following
        parts = _parts(value)
        for part in parts or [value]:
            sources[_after_replacements(part)] = _Source(linear, max(len(parts), 1))
    return sources


def _data_uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that read a value's elements, and as which input."""
    return [(node, index) for node, index in value.uses() if node.op_type not in _MEASURES]


def _settles_into(value: ir.Value, width: int) -> ir.Value | None:
    """The next value on the way from the product to the pre-activation: bias added, reshaped, or some replaced."""
    if (replaced := _after_replacements(value)) is not value:
        return replaced
    uses = _data_uses(value)
    if len(uses) != 1:
        return None
    node, position = uses[0]
    if node.op_type == "Add":
        addend = node.inputs[1 - position]
        biased = addend is not None and constant_size(addend) == width
        return node.outputs[0] if biased else None
    if node.op_type in RESHAPES and position == 0:
        return node.outputs[0]
    return None


def _after_replacements(value: ir.Value) -> ir.Value:
    """The value once earlier interventions have replaced some of its elements."""
    for node, position in _data_uses(value):
        if node.op_type in _REPLACES_SOME and position == 0:
            return _after_replacements(node.outputs[0])
        if node.op_type == "Split" and (joined := _joined(node)) is not None:
            return _after_replacements(joined)
    return value


def _joined(split: ir.Node) -> ir.Value | None:
    """The value in which all parts of a Split are joined again, in their order and along the same axis, if one is."""
    ends = [_after_replacements(part) for part in split.outputs]
    for join, _ in ends[0].uses():
        if join.op_type == "Concat" and list(join.inputs) == ends:
            axes = [node.attributes.get_int("axis", 0) for node in (split, join)]
            return join.outputs[0] if axes[0] == axes[1] else None
    return None


def _parts(value: ir.Value) -> list[ir.Value]:
    """The outputs of the Slices or the Split that divide a fused linear's output; empty if it is not fused."""
    nodes = [node for node, _ in _data_uses(value)]
    if nodes and all(node.op_type == "Slice" for node in nodes):
        return [node.outputs[0] for node in nodes]
    if len(nodes) == 1 and nodes[0].op_type == "Split":
        return list(nodes[0].outputs)
    return []


def _feed_forward_layer(down: Linear, sources: Mapping[ir.Value, _Source]) -> FeedForwardLayer | None:
    """The FFL that ends in ``down``, its index left 0; None where ``down`` ends no FFL."""
    walked = _walk_back(down.data, sources)
    if walked is None:
        return None
    reached, activated = walked
    if len(activated) != 1 or len(reached) > 2:
        return None
    width, hidden = down.inputs, down.outputs
    for value in reached:
        source = sources[value]
        if (source.linear.inputs, source.linear.outputs) != (hidden, width * source.parts):
            return None
        if source.parts not in (1, len(reached)):
            return None
    (pre_activation,) = activated
    gate = sources[pre_activation].linear
    plain = next(iter(reached - activated), None)
    return FeedForwardLayer(
        index=0,
        gate=gate.node,
        pre_activation=pre_activation,
        up=None if plain is None else sources[plain].linear.node,
        up_output=plain,
        key_vector=down.data,
        down=down.node,
        width=width,
        hidden=hidden,
        dtype=down.dtype,
    )


def _walk_back(end: ir.Value, sources: Mapping[ir.Value, _Source]) -> tuple[set[ir.Value], set[ir.Value]] | None:
    """The sources that ``end`` is computed from, and those with an activation on the way.

    None where it is computed from anything else.
    """
    reached: set[ir.Value] = set()
    activated: set[ir.Value] = set()
    seen: set[tuple[ir.Value, bool]] = set()
    pending = [(end, False)]
    while pending:
        step = pending.pop()
        value, through_activation = step
        if step in seen:
            continue
        seen.add(step)
        if value in sources:
            reached.add(value)
            if through_activation:
                activated.add(value)
            continue
        if constant_size(value) is not None:
            continue
        node = value.producer()
        if node is None:
            return None
        if node.op_type in _ACTIVATIONS or node.op_type in ELEMENT_WISE:
            through_activation = through_activation or node.op_type in _ACTIVATIONS
            pending.extend((data, through_activation) for data in node.inputs if data is not None)
        elif node.op_type in _HANDS_ON and node.inputs[0] is not None:
            pending.append((node.inputs[0], through_activation))
        else:
            return None
    return reached, activated
