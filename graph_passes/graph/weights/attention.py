"""The linears of attention in a decoder graph, found by structure: what becomes queries, keys and values, and the
product of the heads' results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy
from bakeout.graph_passes.graph.linear import Linear, as_linear
from bakeout.graph_passes.graph.weights.weight_location import WeightLocation, locate_in_linear
from bakeout.models.plan import AttentionRole

_OPERATORS = frozenset(
    (("com.microsoft", "GroupQueryAttention"), ("com.microsoft", "MultiHeadAttention"), ("", "Attention"))
)
_REMEDY = "Bake the checkpoint, or an export with the model's own linear layers."
_MEASURES = frozenset(("Shape", "Size"))
_PACKED: tuple[AttentionRole, ...] = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """The linears of one attention by their roles: those from which one value comes alone.

    ``heads``: how many heads queries have, and keys, where one operator takes all three in one value.
    """

    index: int
    linears: Mapping[AttentionRole, Linear]
    heads: tuple[int, int] | None = None

    def locate(self, role: AttentionRole) -> WeightLocation:
        """Find the weight of ``role``, as ``weight_location.locate_weight`` does. Raises ``GraphError`` likewise."""
        where = f"Attention of layer {self.index}, {role}"
        linear = self.linears.get("q" if role == "qkv" else role)
        if linear is None:
            raise GraphError(f"{where}: no single linear layer of the graph is it.", _REMEDY)
        together = [name for name in _PACKED if (own := self.linears.get(name)) and own.node is linear.node]
        if role == "qkv" and len(together) < len(_PACKED):
            raise GraphError(f"{where}: the graph has several linear layers for what the model has in one.", _REMEDY)
        rows = self._rows(role, linear, where) if role in together and len(together) > 1 else None
        return locate_in_linear(linear, where, rows)

    def _rows(self, role: AttentionRole, linear: Linear, where: str) -> slice:
        """Where in a packed linear the rows of ``role`` lie: queries, keys and values follow one another."""
        if self.heads is None or 0 in self.heads or linear.outputs % (self.heads[0] + 2 * self.heads[1]):
            raise GraphError(
                f"{where}: the graph has one linear layer for what the model has in several, and does not say how they "
                "lie in it.",
                _REMEDY,
            )
        size = linear.outputs // (self.heads[0] + 2 * self.heads[1])
        queries, keys = self.heads[0] * size, self.heads[1] * size
        start = {"q": 0, "k": queries, "v": queries + keys}[role]
        return slice(start, start + (queries if role == "q" else keys))


def attention_layers(graph: ir.Graph, anatomy: Anatomy) -> tuple[AttentionLayer, ...]:
    """The attention of every block, in order. Raises ``GraphError`` where there are not as many as blocks.

    Where a block reads another's keys and values, their linears are the other's alone.
    """
    found = tuple(_found(graph))
    layers, routers = len(anatomy.layers), len(anatomy.routers)
    if len(found) not in (max(layers, routers), layers + routers):
        raise GraphError(
            f"The plan edits attention, and the graph has {len(found)} for {max(layers, routers)} feed-forward layers.",
            _REMEDY,
        )
    taken: set[ir.Node] = set()
    attentions = []
    for index, (linears, heads) in enumerate(found):
        own = {role: linear for role, linear in linears.items() if linear.node not in taken}
        taken |= {linear.node for linear in own.values()}
        attentions.append(AttentionLayer(index, own, heads))
    return tuple(attentions)


def _found(graph: ir.Graph) -> Iterator[tuple[Mapping[AttentionRole, Linear], tuple[int, int] | None]]:
    for node in graph:
        if (node.domain, node.op_type) in _OPERATORS:
            values = dict(zip(_PACKED, node.inputs, strict=False))
            heads = None
            if values.get("k") is None and values.get("v") is None:
                values = dict.fromkeys(_PACKED, node.inputs[0])
                heads = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
            yield _single(values, node.outputs[0]), heads
        elif node.op_type == "Softmax" and (computed := _of_softmax(node)) is not None:
            yield _single(*computed), None


def _of_softmax(node: ir.Node) -> tuple[Mapping[AttentionRole, ir.Value | None], ir.Value] | None:
    """What queries, keys and values are in attention that standard operators compute, and the heads' results.

    None for the softmax of anything else.
    """
    scores = list(_nearest(node.inputs[:1], _producers, _is_product))
    results = list(_nearest(node.outputs, _readers, _is_product))
    if len(scores) != 1 or len(results) != 1 or as_linear(scores[0]) or as_linear(results[0]):
        return None
    query, key = scores[0].inputs[:2]
    return {"q": query, "k": key, "v": results[0].inputs[1]}, results[0].outputs[0]


def _single(values: Mapping[AttentionRole, ir.Value | None], result: ir.Value) -> Mapping[AttentionRole, Linear]:
    linears = {
        role: list(_nearest([value], _producers, _is_linear)) for role, value in values.items() if value is not None
    }
    linears["o"] = list(_nearest([result], _readers, _is_linear))
    return {
        role: linear for role, own in linears.items() if len(own) == 1 and (linear := as_linear(own[0])) is not None
    }


def _nearest(
    values: Iterable[ir.Value | None],
    step: Callable[[ir.Value], Iterable[ir.Node]],
    ends: Callable[[ir.Node], bool],
) -> Iterator[ir.Node]:
    """The nodes in which every way from ``values`` on ends first."""
    waiting, seen = [value for value in values if value is not None], set()
    while waiting:
        for node in step(waiting.pop()):
            if node in seen:
                continue
            seen.add(node)
            if ends(node):
                yield node
            else:
                following = node.inputs if step is _producers else node.outputs
                waiting += [value for value in following if value is not None]


def nearest_linears(value: ir.Value) -> list[Linear]:
    """The linears that come first on all ways back from ``value``."""
    found = (as_linear(node) for node in _nearest([value], _producers, _is_linear))
    return [linear for linear in found if linear is not None]


def _producers(value: ir.Value) -> Iterable[ir.Node]:
    node = value.producer()
    return () if node is None or node.op_type in _MEASURES else (node,)


def _readers(value: ir.Value) -> Iterable[ir.Node]:
    return [node for node, _ in value.uses() if node.op_type not in _MEASURES]


def _is_product(node: ir.Node) -> bool:
    return node.op_type in ("MatMul", "Gemm") or as_linear(node) is not None


def _is_linear(node: ir.Node) -> bool:
    return as_linear(node) is not None
