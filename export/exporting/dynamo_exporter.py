"""torch.onnx.export on any architecture that transformers computes with its own cache: no knowledge of each."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bakeout.export.exporting.failures import told_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bakeout.export.recipes.bake_options import DType

PACKAGES = ("onnxscript", "torch", "transformers")
# The newest that onnxruntime-web reads, with the newest file format that it does.
_OPSET, _IR_VERSION = 20, 10
# Past and new tokens of the example: none of them, nor the two rows, is 1, which would be taken for a constant.
_PAST, _NEW = 4, 3


def unavailable(model_type: str) -> str | None:
    """Nothing is known against any architecture before it is tried."""
    return None


def export(model: PreTrainedModel, directory: Path, checkpoint: Path, dtype: DType) -> ir.Model:
    """The graph of ``model``; its configuration is written into ``directory``.

    Raises ``BakeoutError`` where torch cannot; the errors name ``checkpoint`` and ``dtype``.
    """
    with told_of(checkpoint, dtype, "torch.onnx.export"):
        graph = _graph(model)
        model.config.save_pretrained(directory)
        if model.generation_config is not None:
            # Not ``save_pretrained``, which refuses settings that many published models have and generation ignores.
            model.generation_config.to_json_file(directory / "generation_config.json", use_diff=True)
    _strip(graph)
    return graph


def _graph(model: PreTrainedModel) -> ir.Model:
    import torch
    from torch.export import Dim

    from bakeout.export.exporting.traced_decoder import TracedDecoder

    # The other implementations mask with infinity, of which a row of padding would have no softmax.
    model.set_attn_implementation("eager")
    decoder = TracedDecoder(model, _PAST)
    tokens = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    example: dict[str, Any] = {
        "input_ids": torch.ones(2, _NEW, dtype=torch.long),
        "attention_mask": torch.ones(2, _PAST + _NEW, dtype=torch.long),
    }
    if "position_ids" in inspect.signature(model.forward).parameters:
        example["position_ids"] = torch.arange(_PAST, _PAST + _NEW).repeat(2, 1)
    shapes: dict[str, Any] = dict.fromkeys(example, tokens)
    names = [*example, *(entry.name("past") for entry in decoder.kept)]
    traced: dict[str, Any] = {
        "kwargs": {**example, "past": decoder.example},
        "dynamic_shapes": {
            **shapes,
            "past": [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC} if entry.grows else {0: Dim.DYNAMIC} for entry in decoder.kept],
        },
    }
    written: dict[str, Any] = {
        "dynamo": True,
        "opset_version": _OPSET,
        "input_names": names,
        "output_names": ["logits", *(entry.name("present") for entry in decoder.kept)],
        "verbose": False,
    }
    try:
        program = torch.onnx.export(decoder, **traced, **written)
    except torch.onnx.OnnxExporterError:
        # It traces by a rule (`backed_size_oblivious`) that mpt's slice of its bias contradicts; torch.export has
        # another one.
        program = torch.onnx.export(torch.export.export(decoder, (), **traced, strict=False), **written)
    assert program is not None
    graph: ir.Model = program.model
    return graph


def _strip(graph: ir.Model) -> None:
    """Take out what differs from machine to machine: paths of sources, and names of modules."""
    graph.ir_version = _IR_VERSION
    graph.producer_version = None
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
