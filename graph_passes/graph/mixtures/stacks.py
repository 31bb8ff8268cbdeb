"""Experts that lie in stacks: one product with [experts, in, out] computes a mixture's experts for all tokens.

A stack is a feed-forward layer like any other, but for a first axis of experts. Adjusting one expert's pre-activations
needs them apart: ``apart`` splits the axis and joins it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import onnx_ir as ir

from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer, feed_forward_layers
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.graph.linear import as_stacked_linear
from bakeout.graph_passes.graph.mixtures.experts import is_expert


def stacked_experts(nodes: Iterable[ir.Node]) -> tuple[FeedForwardLayer, ...]:
    """The experts of all stacks, in topological order, each with its place in the stack."""
    linears = [linear for node in nodes if (linear := as_stacked_linear(node)) is not None]
    stacks = {linear.node: linear.stack for linear in linears}
    return tuple(
        replace(layer, slot=slot)
        for layer in feed_forward_layers(linears)
        if is_expert(layer)
        for slot in range(stacks[layer.down])
    )


def apart(graph: ir.Graph, experts: Sequence[FeedForwardLayer], prefix: str) -> list[FeedForwardLayer]:
    """The same experts of one stack, each with a pre-activation of its own, [1, tokens, F], that can be adjusted."""
    stacked, linear = experts[0].pre_activation, as_stacked_linear(experts[0].down)
    assert linear is not None, "experts of a stack are computed by one product"
    size = linear.stack
    readers = tuple(stacked.uses())
    build = GraphBuilder(graph, prefix)
    names = [f"expert_{number}" for number in range(size)]
    parts = build.outputs("Split", [stacked, [1] * size], size, names, axis=0)
    joined = build("Concat", *parts, name="experts", axis=0)
    for value in (*parts, joined):
        value.type = stacked.type
    joined.shape = stacked.shape
    producer = stacked.producer()
    assert producer is not None, "a pre-activation is computed by the graph"
    graph.insert_after(producer, build.nodes)
    for reader, position in readers:
        reader.replace_input_with(position, joined)
    return [replace(expert, pre_activation=parts[expert.slot or 0]) for expert in experts]
