"""A decoder with its KV cache exported by ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache

from bakeout.models.checkpoint.checkpoint_files import load_model

# Past and new tokens, and rows: none of them 1, which the exporter would take for a constant.
ROWS, PAST, NEW = 2, 4, 3


class _WithCache(nn.Module):
    """A decoder whose cache is a list of pairs of tensors, as inputs and outputs of a graph are."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.model = load_model(checkpoint)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        output = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, [(layer.keys, layer.values) for layer in output.past_key_values.layers]


def export_by_dynamo(checkpoint: Path, path: Path, opset: int) -> None:
    """Write the graph, its weights in a file beside it, with the names that optimum gives inputs and outputs."""
    model = _WithCache(checkpoint).eval()
    with torch.no_grad():
        cache = model.model(torch.ones(ROWS, PAST, dtype=torch.long), use_cache=True).past_key_values
    past = [(layer.keys, layer.values) for layer in cache.layers]
    kinds = [f"{layer}.{kind}" for layer in range(len(past)) for kind in ("key", "value")]
    tokens = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    slots = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    torch.onnx.export(
        model,
        (
            torch.ones(ROWS, NEW, dtype=torch.long),
            torch.ones(ROWS, PAST + NEW, dtype=torch.long),
            torch.arange(PAST, PAST + NEW).expand(ROWS, NEW),
            past,
        ),
        path,
        dynamo=True,
        opset_version=opset,
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{kind}" for kind in kinds)],
        output_names=["logits", *(f"present.{kind}" for kind in kinds)],
        dynamic_shapes={
            "input_ids": tokens,
            "attention_mask": tokens,
            "position_ids": tokens,
            "past": [(slots, slots)] * len(past),
        },
        external_data=True,
        verbose=False,
    )
