"""Looking inside a baked graph: intermediate values as further outputs, in a copy made for that."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bakeout.graph_passes.errors import GraphError


class ObservePass(ir.passes.InPlacePass):
    """Give the graph the values called ``names`` as further outputs.

    An early exit that would skip some of them is undone: what it skips is always computed. Raises ``GraphError`` where
    the graph has no value of that name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(names))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit the graph in place."""
        graph = model.graph
        asked = set(self.names)
        for node in list(graph):
            for branch in _branches(node):
                if asked & {value.name for inner in branch for value in inner.outputs}:
                    _always_take(graph, node, branch)
                    break
        by_name = {value.name: value for node in graph for value in node.outputs if value.name in asked}
        if missing := [name for name in self.names if name not in by_name]:
            raise GraphError(
                f"The graph has no value called {missing[0]}, which a receipt names.", "Bake the plan again."
            )
        graph.outputs.extend(by_name[name] for name in self.names)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _always_take(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Replace an ``If`` by one of its branches."""
    results = list(branch.outputs)
    branch.outputs.clear()
    inner = list(branch)
    branch.remove(inner)
    constants = list(branch.initializers.values())
    branch.initializers.clear()
    for constant in constants:
        graph.register_initializer(constant)
    graph.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = None, name
        if new.type is None:
            new.type, new.shape = old.type, old.shape
    for other in _branches(node):
        # Else what it captures would count as used.
        other.outputs.clear()
        other.remove(list(other), safe=True)
    graph.remove(node, safe=True)


def _branches(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
