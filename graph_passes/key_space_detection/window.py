"""Which tokens a run brings: the real ones among the new positions, and the newest slot of the past."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import END, GraphBuilder


@dataclass(frozen=True, eq=False)
class Window:
    """The W new positions of a run and the past slots before them, as the attention mask has them.

    ``length`` (W) and ``total`` (the mask's width): int64 [1]. ``past``: the past slots, which is the slot of new
    position 0 too; int64 [1], or [B, 1] where each row has its own. ``index``: 0 .. W - 1. ``is_real``: int64 [B, W],
    1 for a real token. ``last``: int64 [B, 1], the index of a row's last real token (0 where it has none);
    ``has_any``: bool [B, 1]. ``newest_past``: int64 [B, 1], the newest real slot of the past, -1 where there is none.
    """

    length: ir.Value
    total: ir.Value
    past: ir.Value
    index: ir.Value
    is_real: ir.Value
    last: ir.Value
    has_any: ir.Value
    newest_past: ir.Value


def read_window(build: GraphBuilder, input_ids: ir.Value, attention_mask: ir.Value, *, packed: bool = False) -> Window:
    """Read the run's shape off ``input_ids`` [B, W] and ``attention_mask`` [B, P + W].

    A cache has a slot for every column of the mask, which alone says where real tokens are: padding may be left or
    right. A ``packed`` one (GroupQueryAttention's) has slots for a row's real tokens alone, one after the other: of
    the mask only their number counts, padding can only be on the right of a first run, and the mask may be as long as
    the cache. Slots beyond those of the mask count neither as past nor as new.
    """
    length = build.dimension(input_ids, 1)
    mask = build.cast(attention_mask, ir.DataType.INT64)
    total = build.dimension(mask, 1)
    index = build.range(length)
    if packed:
        tokens = build("ReduceSum", mask, [1])
        past = build("Max", build("Sub", tokens, length), 0, name="past_slots")
        goes_on = build("Cast", build("Greater", past, 0), to=ir.DataType.INT64)
        is_real = build("Max", build("Slice", mask, [0], length, [1]), goes_on, name="is_real")
        newest_past = build("Sub", past, 1, name="newest_past_slot")
    else:
        past = build("Sub", total, length)
        is_real = build("Slice", mask, past, [END], [1], name="is_real")
        slot = build.range(total)
        slot_of_real = build("Sub", build("Mul", mask, build("Add", slot, 1)), 1)
        is_past = build("Less", slot, past)
        newest_past = build("ReduceMax", build("Where", is_past, slot_of_real, -1), [1], name="newest_past_slot")
    return Window(
        length=length,
        total=total,
        past=past,
        index=index,
        is_real=is_real,
        last=build("ReduceMax", build("Mul", is_real, index), [1], name="last_real_token"),
        has_any=build("Greater", build("ReduceMax", is_real, [1]), 0),
        newest_past=newest_past,
    )


def read_window_without_mask(build: GraphBuilder, input_ids: ir.Value, past_value: ir.Value) -> Window:
    """As ``read_window``, of a graph that takes no mask: every new token and every slot of the past is real."""
    length, past = build.dimension(input_ids, 1), build.dimension(past_value, 2)
    index = build.range(length)
    is_real = build("Expand", 1, build("Shape", input_ids), name="is_real")
    each_row = build("Concat", build.dimension(input_ids, 0), [1], axis=0)
    return Window(
        length=length,
        total=build("Add", past, length),
        past=past,
        index=index,
        is_real=is_real,
        last=build("ReduceMax", build("Mul", is_real, index), [1], name="last_real_token"),
        has_any=build("Greater", build("ReduceMax", is_real, [1]), 0),
        newest_past=build("Expand", build("Sub", past, 1), each_row, name="newest_past_slot"),
    )
