"""A decoder in two graphs, as ``transformers.exporters`` writes it, made of one graph with a cache and a mask."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bakeout.graph_passes.graph.exporter_names import past_name, present_name
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.graph.graph_file import load_graph, save_graph

TOKENS = "tokens"


def split(export: Path, directory: Path, *, one_token: bool = False) -> Path:
    """``prefill.onnx`` and ``decode.onnx`` of an export by optimum, with one copy of its data each.

    Neither takes a mask. ``one_token``: the second takes one token at a time, as that exporter has it by default.
    """
    shutil.copytree(export, directory, ignore=shutil.ignore_patterns("*.onnx*"))
    for name in ("prefill", "decode"):
        model = load_graph(export / "model.onnx")
        data = f"{name}.onnx.data"
        shutil.copy(export / "model.onnx.data", directory / data)
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value.name_in_graph = data  # type: ignore[attr-defined]
        _without_mask(model)
        if name == "prefill":
            _without_past(model)
        _rename(model, "" if name == "prefill" else "output.")
        (ids,) = (value for value in model.graph.inputs if value.name == "input_ids")
        ids.shape = ir.Shape(["rows", 1 if one_token and name == "decode" else TOKENS])
        RemoveUnusedNodesPass()(model)
        save_graph(model, directory / f"{name}.onnx")
    return directory


def _without_mask(model: ir.Model) -> None:
    graph = model.graph
    by_name = {value.name: value for value in graph.inputs}
    build = GraphBuilder(graph, "all_real")
    ids, mask = by_name["input_ids"], by_name["attention_mask"]
    past = next(value for value in graph.inputs if past_name(value.name))
    total = build("Add", build.dimension(ids, 1), build.dimension(past, 2))
    ones = build("Expand", 1, build("Concat", build.dimension(ids, 0), total, axis=0))
    ir.convenience.replace_all_uses_with(mask, ones)
    graph.inputs.remove(mask)
    graph.insert_before(graph[0], build.nodes)


def _without_past(model: ir.Model) -> None:
    graph = model.graph
    build = GraphBuilder(graph, "nothing_before")
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    for past in [value for value in graph.inputs if past_name(value.name)]:
        assert past.shape is not None
        shape = build("Concat", build.dimension(ids, 0), [int(str(past.shape[1])), 0, int(str(past.shape[3]))], axis=0)
        empty = build("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, np.float32)))
        ir.convenience.replace_all_uses_with(past, empty)
        graph.inputs.remove(past)
    graph.insert_before(graph[0], build.nodes)
    for value in graph.outputs:
        if present_name(value.name):
            assert value.shape is not None
            value.shape = ir.Shape([value.shape[0], value.shape[1], TOKENS, value.shape[3]])


def _rename(model: ir.Model, prefix: str) -> None:
    for value in model.graph.inputs:
        if part := past_name(value.name):
            value.name = f"input.cache.layers.{part.layer}.{part.kind}s"
    for value in model.graph.outputs:
        if part := present_name(value.name):
            value.name = f"{prefix}cache.layers.{part.layer}.{part.kind}s"
