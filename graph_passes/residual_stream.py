"""Where the residual stream is complete behind a block: the addition that ends it, found by structure."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer
from bakeout.graph_passes.graph.linear import constant_size

# Additions with the norm behind them in one operator; their fourth output is the sum.
FUSED_NORMS = frozenset(("SkipSimplifiedLayerNormalization", "SkipLayerNormalization"))
SUM_OUTPUT = 3
_MEASURES = frozenset(("Shape", "Size"))
_HANDS_ON = frozenset(("Reshape", "Cast", "Identity"))


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """The addition behind a block: ``node`` adds ``written``, which the block computes, to what came before.

    ``position`` is the operand's. ``fused``: the node normalises the sum too.
    """

    node: ir.Node
    position: int
    fused: bool

    @property
    def written(self) -> ir.Value:
        """What is added last, the output of ``down`` in it."""
        value = self.node.inputs[self.position]
        assert value is not None, "an addition has two operands"
        return value


def residual_sum(graph: ir.Graph, layer: FeedForwardLayer) -> ResidualSum:
    """The addition whose sum is the residual stream behind a block.

    The first one of what ``down`` gives to something that does not come from it; where another reads nothing but that
    sum, as in blocks whose attention and FFL run in parallel, that one. Raises ``GraphError`` where there is none.
    """
    started = _next_sum(graph, layer.down.outputs[0])
    if started is None:
        raise GraphError(
            f"Layer {layer.index}: what the feed-forward layer computes is not added to a residual stream.",
            "Bake a decoder whose blocks add to their residual stream.",
        )
    while not started.fused and (reader := _only_reader(started.node.outputs[0])) is not None:
        following = _as_sum(reader[0], {reader[1]})
        if following is None:
            break
        started = following
    return started


def _next_sum(graph: ir.Graph, value: ir.Value) -> ResidualSum | None:
    """The first addition, in the graph's order, of something that comes from ``value`` and something that does not."""
    reached = {value}
    waiting = {node for node, _ in value.uses()}
    started = value.producer()
    for node in _behind(graph, started):
        if node not in waiting or node.op_type in _MEASURES:
            continue
        if (completed := _as_sum(node, reached)) is not None:
            return completed
        reached |= set(node.outputs)
        waiting |= {reader for output in node.outputs for reader, _ in output.uses()}
    return None


def _behind(graph: ir.Graph, node: ir.Node | None) -> list[ir.Node]:
    nodes = list(graph)
    return nodes[nodes.index(node) + 1 :] if node in nodes else []


def _as_sum(node: ir.Node, reached: set[ir.Value]) -> ResidualSum | None:
    fused = node.op_type in FUSED_NORMS
    if not fused and (node.domain, node.op_type) != ("", "Add"):
        return None
    own = [index for index in (0, 1) if node.inputs[index] in reached]
    if len(own) != 1:
        return None
    other = node.inputs[1 - own[0]]
    if other is None or constant_size(other) is not None:
        return None
    return ResidualSum(node, own[0], fused)


def _only_reader(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The one node that reads a value's elements, through what only hands them on, and as which value."""
    readers = [node for node, _ in value.uses() if node.op_type not in _MEASURES]
    if len(readers) != 1 or value.is_graph_output():
        return None
    if readers[0].op_type in _HANDS_ON:
        return _only_reader(readers[0].outputs[0])
    return readers[0], value
