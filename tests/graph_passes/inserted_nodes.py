"""Graphs with their branches, and what the passes put into them, with the types that it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper


class InsertedNode(NamedTuple):
    """A node as a kernel is looked up for it: ``types`` are those of its inputs and then outputs, ``""`` for none."""

    domain: str
    operator: str
    opset: int
    types: tuple[str, ...]
    inputs: int


def inserted_nodes(before: ModelProto, after: ModelProto) -> set[InsertedNode]:
    """The nodes of ``after``, branches included, that ``before`` does not have by name. Constants are folded: none."""
    old = {node.name for node in before.graph.node}
    opsets = {entry.domain: entry.version for entry in after.opset_import}
    found = set()
    for node, types in _typed_nodes(onnx.shape_inference.infer_shapes(after, strict_mode=True).graph, {}):
        if node.name not in old and node.op_type != "Constant":
            names = [*node.input, *node.output]
            kinds = tuple(types[name] if name else "" for name in names)
            found.add(InsertedNode(node.domain, node.op_type, opsets[node.domain], kinds, len(node.input)))
    return found


def with_branches(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every branch of its nodes, outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from with_branches(attribute.g)


def _typed_nodes(graph: GraphProto, outer: dict[str, str]) -> Iterator[tuple[NodeProto, dict[str, str]]]:
    types = dict(outer)
    for value in [*graph.input, *graph.value_info, *graph.output]:
        types[value.name] = _type(value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        types[tensor.name] = _type(tensor.data_type)
    for node in graph.node:
        yield node, types
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _typed_nodes(attribute.g, types)


def _type(element: int) -> str:
    return f"tensor({helper.tensor_dtype_to_string(element).removeprefix('TensorProto.').lower()})"
