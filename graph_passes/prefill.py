"""Graphs that read prompts alone and leave a cache for another graph to go on with: those without a past.

What edits decoders reads the past. Such a graph gets an empty one for the time of the edits, and takes it out of itself
afterwards: nothing else need know of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.exporter_names import past_name, present_name
from bakeout.graph_passes.graph.graph_builder import GraphBuilder

_PREFIX = "bakeout.empty_past"


def add_empty_past(model: ir.Model) -> list[str]:
    """Give a graph an input for the past of every attention layer's cache that it leaves, and return their names.

    A cache that holds every token gets its new slots behind those; one that holds fewer has nothing in common with its
    past. Raises ``GraphError`` where the graph has a past, leaves no cache, or leaves one of an unknown shape.
    """
    graph = model.graph
    left = [(name, value) for value in graph.outputs if (name := present_name(value.name)) and name.is_key_or_value]
    if taken := [value.name for value in graph.inputs if past_name(value.name)]:
        raise GraphError(
            f"The graph that reads prompts takes {taken[0]}, where it is to begin with an empty cache.",
            "Export the model as one graph; transformers.exporters hands on what windows are through such inputs.",
        )
    if not left:
        raise GraphError("The graph that reads prompts leaves no cache.", "Export the model with its cache.")
    tokens = next((value.shape for value in graph.inputs if value.name == "input_ids"), None)
    build, names = GraphBuilder(graph, f"{_PREFIX}.joined"), []
    for name, value in left:
        shape = value.shape
        if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise GraphError(f"The cache {value.name} has the shape {shape}, without known heads and head size.")
        past = ir.Value(
            name=f"past_key_values.{name.layer}.{name.kind}",
            type=value.type,
            shape=ir.Shape([shape[0], shape[1], "bakeout_no_slots", shape[3]]),
        )
        graph.inputs.append(past)
        names.append(str(past.name))
        if tokens is not None and len(tokens) == 2 and shape[2] == tokens[1]:
            joined = build("Concat", past, value, axis=2)
            graph.outputs[list(graph.outputs).index(value)] = joined
            value.name, joined.name = f"{value.name}.new", value.name
            joined.type, joined.shape = value.type, value.shape
    graph.extend(build.nodes)
    return names


def remove_empty_past(model: ir.Model, names: Sequence[str]) -> None:
    """Replace the inputs ``names`` by a past of no slots."""
    graph = model.graph
    build = GraphBuilder(graph, _PREFIX)
    by_name = {value.name: value for value in graph.inputs}
    batch = build.dimension(by_name["input_ids"], 0)
    for name in names:
        past = by_name[name]
        assert past.shape is not None and past.dtype is not None, "given above"
        shape = build("Concat", batch, [int(str(past.shape[1])), 0, int(str(past.shape[3]))], axis=0)
        zero = ir.tensor(np.zeros(1, past.dtype.numpy()), dtype=past.dtype)
        empty = build("ConstantOfShape", shape, value=zero)
        empty.type = past.type
        ir.convenience.replace_all_uses_with(past, empty)
        graph.inputs.remove(past)
    graph.insert_before(graph[0], build.nodes)
