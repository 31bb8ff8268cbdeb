"""Mixtures of experts in a decoder graph, found by structure: their routers, and which FFLs are experts.

A *router* is a linear that gives a score for every expert, from which tokens are routed: a TopK chooses among its
scores, or an operator that holds the experts (``MoE``, ``QMoE``) reads them. An FFL is an *expert* where only the rows
of some tokens go through it, or where what it gives is weighted by what a TopK chose: the others see every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.graph.feed_forward import ELEMENT_WISE, RESHAPES, FeedForwardLayer
from bakeout.graph_passes.graph.linear import Linear, as_linear, constant_size

# Operators that hold experts, and which of their inputs are the router's scores.
_HOLDS_EXPERTS: Mapping[tuple[str, str], int] = {("com.microsoft", "MoE"): 1, ("com.microsoft", "QMoE"): 1}
_CHOOSES = ("", "TopK")
# What lies between a router's product and the choice: normalising, grouping, masking; before an operator that holds
# experts, also a choice that the graph makes itself (the genai builder's lfm2_moe).
_NORMALISES = frozenset(
    ("Sigmoid", "Softmax", "Softplus", "Reciprocal", "Log", "Transpose", "Slice", "GatherElements", "ScatterElements")
)
_TAKES_ROWS = frozenset(("Gather", "GatherND", "GatherElements", "Compress"))
# Nodes between an expert's output and its weight at most.
_LONGEST = 40


@dataclass(frozen=True, eq=False)
class GraphRouter:
    """A router. ``inputs``: what it reads, [batch, tokens, hidden] or [batch * tokens, hidden]; ``logits``: its scores
    before any normalisation, [..., experts].
    """

    index: int
    node: ir.Node
    inputs: ir.Value
    logits: ir.Value
    experts: int
    hidden: int
    dtype: ir.DataType


@dataclass(frozen=True, eq=False)
class Held:
    """Experts inside an operator, which hides their neurons: ``node``, and the number of its ``router``, if known."""

    node: ir.Node
    router: int | None


def find_routers(nodes: Iterable[ir.Node], linears: Sequence[Linear]) -> tuple[GraphRouter, ...]:
    """The routers among a graph's linears, in topological order."""
    by_output = {linear.output: linear for linear in linears}
    chosen: set[Linear] = set()
    for node in nodes:
        scores = node.inputs[0] if (node.domain, node.op_type) == _CHOOSES else _scores_of_held(node)
        if scores is not None:
            chosen.update(_scored_by(scores, by_output))
    routers = [linear for linear in linears if linear in chosen]
    return tuple(
        GraphRouter(index, linear.node, linear.data, _with_bias(linear), linear.outputs, linear.inputs, linear.dtype)
        for index, linear in enumerate(routers)
    )


def held_experts(nodes: Iterable[ir.Node], routers: Sequence[GraphRouter]) -> tuple[Held, ...]:
    """The operators that hold experts."""
    by_node = {router.node: router.index for router in routers}
    held = []
    for node in nodes:
        if (node.domain, node.op_type) in _HOLDS_EXPERTS:
            scores = _scores_of_held(node)
            producers = () if scores is None else _producers(scores)
            held.append(Held(node, next((by_node[producer] for producer in producers if producer in by_node), None)))
    return tuple(held)


def is_expert(layer: FeedForwardLayer) -> bool:
    """Whether tokens are routed through this FFL."""
    return tokens_of(layer) is not None or any(map(_is_chosen, _weights(layer.down.outputs[0])))


def _scores_of_held(node: ir.Node) -> ir.Value | None:
    """The router's scores that an operator with experts reads."""
    position = _HOLDS_EXPERTS.get((node.domain, node.op_type))
    return node.inputs[position] if position is not None and position < len(node.inputs) else None


def _scored_by(scores: ir.Value, linears: Mapping[ir.Value, Linear]) -> Iterator[Linear]:
    """The linears whose product becomes ``scores`` on the way of normalising, grouping and masking."""
    for value in _walk(scores, lambda node: node.op_type in _NORMALISES | ELEMENT_WISE | RESHAPES, stops=linears):
        if value in linears:
            yield linears[value]


def _producers(value: ir.Value) -> Iterator[ir.Node]:
    for seen in _walk(value, lambda node: node.op_type in _NORMALISES | ELEMENT_WISE | RESHAPES):
        if (node := seen.producer()) is not None:
            yield node


def _with_bias(linear: Linear) -> ir.Value:
    """The product, with a bias that a node of its own adds."""
    for node, position in linear.output.uses():
        if _adds_a_bias(node, position):
            return node.outputs[0]
    return linear.output


def tokens_of(layer: FeedForwardLayer) -> ir.Value | None:
    """The positions of the rows that an expert takes of all tokens; None where it computes all."""
    data = layer.gate.inputs[0]
    if data is None:
        return None
    for value in _walk(data, lambda node: node.op_type in RESHAPES or node.op_type in ("Cast", "Identity")):
        node = value.producer()
        if node is not None and node.op_type in _TAKES_ROWS:
            index = node.inputs[1]
            return None if index is None or constant_size(index) is not None else index
    return None


def _weights(output: ir.Value) -> Iterator[ir.Value]:
    """What an FFL's output is multiplied by."""
    pending, seen = [output], set[ir.Node]()
    while pending and len(seen) < _LONGEST:
        value = pending.pop()
        for node, position in value.uses():
            if node in seen:
                continue
            seen.add(node)
            if node.op_type == "Mul" and (other := node.inputs[1 - position]) is not None:
                yield other
            elif node.op_type in RESHAPES or node.op_type == "Cast" or _adds_a_bias(node, position):
                pending.append(node.outputs[0])


def _adds_a_bias(node: ir.Node, position: int) -> bool:
    """Whether a node adds a constant, and not the output of another expert."""
    if node.op_type != "Add":
        return False
    addend = node.inputs[1 - position]
    return addend is not None and constant_size(addend) is not None


def _is_chosen(weight: ir.Value) -> bool:
    """Whether a value comes from a TopK."""
    return any(
        node is not None and (node.domain, node.op_type) == _CHOOSES
        for node in (value.producer() for value in _walk(weight, _weighs))
    )


def _weighs(node: ir.Node) -> bool:
    return (node.domain, node.op_type) != _CHOOSES and as_linear(node) is None


def _walk(
    end: ir.Value, passes: Callable[[ir.Node], bool], stops: Mapping[ir.Value, object] | None = None
) -> Iterator[ir.Value]:
    """The values that ``end`` is computed from, itself the first, through nodes that ``passes`` lets through."""
    pending, seen = [end], {end}
    while pending and len(seen) < 20 * _LONGEST:
        value = pending.pop(0)
        yield value
        node = value.producer()
        if node is None or (stops is not None and value in stops) or not passes(node):
            continue
        for data in node.inputs:
            if data is not None and data not in seen and constant_size(data) is None:
                seen.add(data)
                pending.append(data)
