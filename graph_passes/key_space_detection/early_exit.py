"""Splitting a flat graph: nodes that only some outputs need move into one branch of an ``If``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from bakeout.graph_passes.graph.dependence import ancestors, captured
from bakeout.graph_passes.graph.graph_builder import Build, GraphBuilder
from bakeout.graph_passes.graph.linear import as_linear


def casts_weights(nodes: Iterable[ir.Node]) -> bool:
    """Whether any of the nodes is a product with float16 weights.

    ONNX Runtime's CPU provider computes these in float32, and casts their weights once where they are in the main
    graph, but in every run where they are in a branch.
    """
    linears = (as_linear(node) for node in nodes if node.op_type in ("MatMul", "Gemm"))
    return any(linear is not None and linear.dtype == ir.DataType.FLOAT16 for linear in linears)


def part(graph: ir.Graph, build: GraphBuilder, condition: ir.Value, skipped: Sequence[ir.Value], instead: Build) -> int:
    """Compute the graph outputs ``skipped`` only where ``condition`` (one bool) is false, and ``instead`` otherwise.

    ``instead`` builds as many values, in the same order. All nodes that nothing but the skipped outputs needs move
    into the ``If``; it returns how many those are. The graph must be sorted, and the new ``If`` ends it.
    """
    refuse = build.branch(instead, "refuse")
    needed = [output for output in graph.outputs if output not in skipped]
    stays = ancestors(graph, [condition, *needed, *captured(refuse)])
    moved = [node for node in graph if node not in stays]
    graph.remove(moved)
    outputs = []
    for output in skipped:
        outputs.append(ir.Value(name=output.name, type=output.type, shape=output.shape))
        graph.outputs[list(graph.outputs).index(output)] = outputs[-1]
        output.name = f"{output.name}.computed"
    go_on = ir.Graph([], skipped, nodes=moved, name="go_on")
    _bring_quantised_weights(graph, go_on)
    branches = {"then_branch": refuse, "else_branch": go_on}
    graph.append(ir.node("If", [condition], branches, outputs=outputs, name="bakeout.early_exit"))
    return len(moved)


def _bring_quantised_weights(graph: ir.Graph, branch: ir.Graph) -> None:
    """Put what the branch dequantises into it: ONNX Runtime fuses that with the product behind it, and finds the
    constants in the same graph or fails.
    """
    for node in branch:
        if node.op_type != "DequantizeLinear":
            continue
        for value in node.inputs:
            if value is None or value.name is None or graph.initializers.get(value.name) is not value:
                continue
            if all(reader.graph is branch for reader in value.consumers()):
                del graph.initializers[value.name]
                branch.register_initializer(value)
            else:
                name = f"{value.name}.go_on"
                if name not in branch.initializers:
                    own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
                    branch.register_initializer(own)
                for reader, position in tuple(value.uses()):
                    if reader.graph is branch:
                        reader.replace_input_with(position, branch.initializers[name])
