"""Which tokens a run brings: the real ones among the new positions, and the newest slot of the past."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.graph_builder import END, GraphBuilder


@dataclass(frozen=True, eq=False)
class Window:
    """The W new positions of a run and the P past slots before them, as the attention mask has them.

    ``length`` (W) and ``past`` (P): int64 [1]. ``index``: 0 .. W - 1. ``is_real``: int64 [B, W], 1 for a real token.
    ``last``: int64 [B, 1], the index of a row's last real token (0 where it has none); ``has_any``: bool [B, 1].
    ``newest_past``: int64 [B, 1], the newest real slot of the past, -1 where there is none.
    """

    length: ir.Value
    past: ir.Value
    index: ir.Value
    is_real: ir.Value
    last: ir.Value
    has_any: ir.Value
    newest_past: ir.Value


def read_window(build: GraphBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> Window:
    """Read the run's shape off ``input_ids`` [B, W] and ``attention_mask`` [B, P + W].

    The mask alone says where real tokens are, so padding may be left or right. Slots beyond the mask (the spare
    capacity of a runtime that shares its cache's buffers) count neither as past nor as new.
    """
    length = build.dimension(input_ids, 1)
    mask = build.cast(attention_mask, ir.DataType.INT64)
    total = build.dimension(mask, 1)
    past = build("Sub", total, length)
    is_real = build("Slice", mask, past, [END], [1], name="is_real")
    index = build.range(length)
    slot = build.range(total)
    is_past = build("Less", slot, past)
    slot_of_real = build("Sub", build("Mul", mask, build("Add", slot, 1)), 1)
    return Window(
        length=length,
        past=past,
        index=index,
        is_real=is_real,
        last=build("ReduceMax", build("Mul", is_real, index), [1], name="last_real_token"),
        has_any=build("Greater", build("ReduceMax", is_real, [1]), 0),
        newest_past=build("ReduceMax", build("Where", is_past, slot_of_real, -1), [1], name="newest_past_slot"),
    )
