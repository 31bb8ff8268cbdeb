"""Writing operators readably: a list of new nodes whose constants are initialisers with descriptive names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Operand = ir.Value | int | list[int]
Build = Callable[["GraphBuilder"], Sequence[ir.Value]]

END = np.iinfo(np.int64).max


class GraphBuilder:
    """Collects nodes for a graph or for a branch of it: ``build("Add", x, y)`` is the value x + y.

    As an operand, an int is a scalar and a list of ints a vector, both int64. Initialisers are registered in the main
    graph, where branches see them too; the caller puts ``nodes`` where they belong. All names start with ``prefix``.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph = graph
        self._prefix = prefix
        self._counts: dict[str, int] = {}

    def __call__(self, operator: str, *inputs: Operand, name: str | None = None, **attributes: object) -> ir.Value:
        """Add a node with one output and return that."""
        return self.outputs(operator, inputs, 1, [name], **attributes)[0]

    def outputs(
        self,
        operator: str,
        inputs: Sequence[Operand],
        count: int,
        names: Sequence[str | None],
        **attributes: object,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs."""
        number = self._counts[operator] = self._counts.get(operator, -1) + 1
        node_name = f"{self._prefix}.{operator}_{number}"
        node = ir.node(
            operator,
            [self._value(operand) for operand in inputs],
            attributes,  # type: ignore[arg-type]
            num_outputs=count,
            name=node_name,
        )
        for index, (output, name) in enumerate(zip(node.outputs, names, strict=True)):
            output.name = self._unique(name) if name else f"{node_name}.output_{index}"
        self.nodes.append(node)
        return node.outputs

    def _unique(self, name: str) -> str:
        """The name, or one like it where a value around a branch or in it has it already."""
        number = self._counts[f".{name}"] = self._counts.get(f".{name}", -1) + 1
        return f"{self._prefix}.{name}" + (f"_{number}" if number else "")

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        """Add a node that does what another does, to other inputs. Its outputs are named after the other's."""
        name = f"{self._prefix}.{node.op_type}"
        copy = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs), name=name
        )
        for output, original in zip(copy.outputs, node.outputs, strict=True):
            output.name = f"{name}.{original.name}"
            output.type, output.shape = original.type, original.shape
        self.nodes.append(copy)
        return copy

    def constant(self, array: NDArray[np.generic], name: str) -> ir.Value:
        """An initialiser; the same name always means the same array."""
        name = f"{self._prefix}.{name}"
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
        self._graph.register_initializer(value)
        return value

    def dimension(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis: int64 [1]."""
        return self("Shape", value, start=axis, end=axis + 1)

    def range(self, length: ir.Value) -> ir.Value:
        """0 .. length - 1: int64 [length] from int64 [1]."""
        return self("Range", 0, self("Squeeze", length), 1)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value as ``dtype``; itself where its type is known to be that."""
        return value if value.dtype == dtype else self("Cast", value, to=dtype)

    def choose(self, condition: ir.Value, then: Build, otherwise: Build, names: Sequence[str]) -> Sequence[ir.Value]:
        """An ``If`` with what two functions build in their branches; ``condition`` is one bool."""
        branches = [self.branch(build, title) for build, title in ((then, "then"), (otherwise, "otherwise"))]
        return self.outputs("If", [condition], len(names), names, then_branch=branches[0], else_branch=branches[1])

    def branch(self, build: Build, title: str) -> ir.Graph:
        """What a function builds, as a branch of an ``If``."""
        inner = GraphBuilder(self._graph, self._prefix)
        inner._counts = self._counts
        outputs = build(inner)
        return ir.Graph([], outputs, nodes=inner.nodes, name=f"{self._prefix}.{title}")

    def _value(self, operand: Operand) -> ir.Value:
        if isinstance(operand, ir.Value):
            return operand
        shown = "_".join(map(str, operand)) if isinstance(operand, list) else f"scalar_{operand}"
        return self.constant(np.array(operand, dtype=np.int64), f"int64_{shown}".replace(str(END), "end"))
