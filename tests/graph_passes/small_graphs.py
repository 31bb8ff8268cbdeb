"""Operators run alone: a few nodes as a graph, under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from bakeout.graph_passes.graph.graph_builder import GraphBuilder


def evaluate(build: Callable[..., Sequence[ir.Value]], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What ``build(builder, **values)`` computes; every array of ``feeds`` is an input whose shape is left open."""
    inputs = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape([None] * array.ndim),
        )
        for name, array in feeds.items()
    }
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports={"": 18}, name="small")
    builder = GraphBuilder(graph, "small")
    graph.outputs.extend(build(builder, **inputs))
    graph.extend(builder.nodes)
    return run(ir.Model(graph, ir_version=10), feeds)


def run(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """All outputs of a model, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    serialised = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))
