"""What depends on what in a graph, through what the branches of its nodes capture too."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


def nodes_behind(graph: ir.Graph, value: ir.Value) -> set[ir.Node]:
    """The graph's own nodes that depend on a value. The graph must be sorted."""
    behind: set[ir.Node] = set()
    for node in graph:
        if any(read is value or read.producer() in behind for read in _read_by([node])):
            behind.add(node)
    return behind


def ancestors(graph: ir.Graph, values: Iterable[ir.Value]) -> set[ir.Node]:
    """The graph's own nodes that the values depend on."""
    needed: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in needed:
            continue
        needed.add(node)
        waiting += _read_by([node])
    return {node for node in needed if node.graph is graph}


def captured(branch: ir.Graph) -> list[ir.Value]:
    """What a branch reads, of its own and of the graph around it."""
    return [*_read_by(branch), *branch.outputs]


def _read_by(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """What nodes read, those in their branches included."""
    read: list[ir.Value] = []
    for node in nodes:
        read += [value for value in node.inputs if value is not None]
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                read += captured(attribute.as_graph())
    return read
