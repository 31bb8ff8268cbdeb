"""The value cache that carries the latch, and how codes get into a run's new slots of it.

A ``GroupQueryAttention`` may write into the past's own memory: no other node may stand between it and the graph's
outputs. What quantises its cache divides new values by a scale, so that codes are multiplied by it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import END, GraphBuilder
from bakeout.graph_passes.key_space_detection.cache_writer import ATTENTION, CacheWriter, zeros
from bakeout.graph_passes.key_space_detection.window import Window

# Codes reach 128, and int8 ends at 127.
_CODE_IN_INT8 = 0.5


@dataclass(frozen=True, eq=False)
class Latch:
    """What is written into new slots: ``code`` builds [B or 1, W or 1, head size], as the cache holds it, for those
    where ``slots`` (bool [B, W]) holds. ``anywhere``: one bool, whether any does, where that may be asked in a branch.
    """

    slots: ir.Value
    code: Callable[[GraphBuilder], ir.Value]
    anywhere: ir.Value | None


class ValueCache:
    """A layer's value cache [B, heads, slots, head size], to write codes into.

    ``is_packed`` as of ``CacheWriter``. ``unit``: what is stored for a code's 1.
    """

    def __init__(self, writer: CacheWriter) -> None:
        self.writer = writer
        shape, head_size = writer.cache.past_value.shape, writer.head_size
        assert shape is not None and isinstance(shape[1], int) and head_size is not None, "chosen with a shape"
        self.heads, self.head_size = shape[1], head_size

    @property
    def past(self) -> ir.Value:
        """The values so far, an input of the graph."""
        return self.writer.cache.past_value

    @property
    def dtype(self) -> ir.DataType:
        """The type of the cache."""
        assert self.past.dtype is not None, "inputs of a graph have types"
        return self.past.dtype

    @property
    def is_packed(self) -> bool:
        """Whether the slots are those of a row's real tokens alone."""
        return self.writer.is_packed

    @property
    def unit(self) -> float:
        """What the cache holds for a code's 1."""
        return 1.0 if self.writer.value_scale is None else _CODE_IN_INT8

    @property
    def holds_floats(self) -> bool:
        """Whether codes are held as they are, in a floating type."""
        return self.writer.value_scale is None

    def newest_slot(self, build: GraphBuilder, window: Window) -> ir.Value:
        """The slot of each row's newest past token: int64 [B, 1], -1 where there is none."""
        if not self.writer.forgets:
            return window.newest_past
        return build("Sub", window.newest_past, self._forgotten(build, window.past), name="newest_kept_slot")

    def in_cache(self, build: GraphBuilder, code: ir.Value) -> ir.Value:
        """A code [..., head size], in float32, as the cache holds it."""
        if self.unit != 1.0:
            code = build("Mul", code, build.constant(np.array(self.unit, np.float32), "latch.unit"))
        return build("Cast", code, to=self.dtype, name="latch_code")

    def write_before(self, build: GraphBuilder, latch: Latch) -> None:
        """Let the latch take the place of the new values of every head before they are written.

        It may not depend on this layer's attention.
        """
        position, changed = self._changed_values(build, latch)
        self.writer.node.replace_input_with(position, changed)

    def write_after(self, build: GraphBuilder, latch: Latch) -> tuple[tuple[ir.Value, ir.Value], ...]:
        """As ``write_before``, for what depends on this layer's attention: that is left as it is.

        A second writer gives the cache. Returns pairs of an output of the graph and what must take its place.
        """
        node, cache = self.writer.node, self.writer.cache
        position, changed = self._changed_values(build, latch)
        inputs = [changed if index == position else value for index, value in enumerate(node.inputs)]
        if node.op_type == "Concat":
            return ((cache.present_value, build("Concat", *_given(inputs), axis=node.attributes["axis"].as_int())),)
        if node.op_type == "Attention":
            # ONNX Runtime wants all its outputs used where it has a past.
            before = build("Slice", cache.present_value, [0], build.dimension(cache.past_value, 2), [2])
            by_head = build("Reshape", changed, [0, 0, self.heads, self.head_size])
            new = build("Transpose", by_head, perm=[0, 2, 1, 3])
            return ((cache.present_value, build("Concat", before, new, axis=2)),)
        # The first one's cache becomes a copy of its own. Keys and values must be one node's, and share memory or not
        # together; what it computes of the attention is not used.
        second = build.copy(node, inputs)
        return (
            (cache.present_key, second.outputs[ATTENTION[node.op_type].present_value - 1]),
            (cache.present_value, second.outputs[ATTENTION[node.op_type].present_value]),
        )

    def extended_with(self, build: GraphBuilder, latch: Latch, window: Window) -> ir.Value:
        """The past with a run's new slots and the latch in them, as ``CacheWriter.extended``."""
        code = latch.code(build)
        if self.writer.forgets:
            return self._kept_with(build, latch.slots, code, window)
        is_written, code = build("Unsqueeze", latch.slots, [1, 3]), build("Unsqueeze", code, [1])
        if not self.is_packed:
            new = build("Where", is_written, code, zeros(build, self.past, window.length))
            return build("Concat", self.past, new, axis=2)
        extended = self.writer.extended(build, self.past, window)
        slot = build("Unsqueeze", build("Add", window.past, build("Unsqueeze", window.index, [0])), [1, 3])
        shape = build("Concat", build.dimension(self.past, 0), [self.heads], window.length, [self.head_size], axis=0)
        slot = build("Expand", slot, shape)
        new = self._where(build, is_written, code, build("GatherElements", extended, slot, axis=2))
        return build("ScatterElements", extended, slot, new, axis=2)

    def _kept_with(self, build: GraphBuilder, slots: ir.Value, code: ir.Value, window: Window) -> ir.Value:
        """The past of a cache that forgets, ``code`` in the slots that new tokens have when the run is over."""
        tokens = build("Add", window.past, window.length)
        first = build("Sub", self._forgotten(build, tokens), window.past)
        kept = build.dimension(self.past, 2)
        # Of which new position each slot is, if of one.
        position = build("Add", build("Unsqueeze", build.range(kept), [0]), first)
        nearest = build("Max", build("Min", position, build("Sub", window.length, 1)), 0)
        chosen = build("GatherElements", build("Cast", slots, to=ir.DataType.INT64), nearest, axis=1)
        is_written = build("And", build("Greater", chosen, 0), build("Equal", nearest, position))
        shape = build("Concat", build.dimension(self.past, 0), kept, [self.head_size], axis=0)
        code = build("GatherElements", code, build("Expand", build("Unsqueeze", nearest, [2]), shape), axis=1)
        return self._where(build, build("Unsqueeze", is_written, [1, 3]), build("Unsqueeze", code, [1]), self.past)

    def _forgotten(self, build: GraphBuilder, tokens: ir.Value) -> ir.Value:
        """How many of so many tokens have left the cache: int64, of the shape of ``tokens``.

        GroupQueryAttention's rule: of C slots for a window of W, whenever they are full the oldest C - W + 1 go.
        """
        capacity = build.dimension(self.past, 2)
        at_once = build("Add", build("Sub", capacity, self.writer.window), 1)
        excess = build("Max", build("Sub", tokens, capacity), 0)
        times = build("Div", build("Sub", build("Add", excess, at_once), 1), at_once)
        return build("Mul", times, at_once)

    def _where(self, build: GraphBuilder, condition: ir.Value, code: ir.Value, values: ir.Value) -> ir.Value:
        if self.unit == 1.0:
            return build("Where", condition, code, values)
        # No runtime chooses among 8-bit integers.
        single = [build("Cast", value, to=ir.DataType.FLOAT) for value in (code, values)]
        return build("Cast", build("Where", condition, *single), to=self.dtype)

    def _changed_values(self, build: GraphBuilder, latch: Latch) -> tuple[int, ir.Value]:
        """The writer's input that brings the new values, with the latch in them, and its position."""
        position = self._position_of_new()
        own = self.writer.node.inputs[position]
        assert own is not None, "brings the new values"

        def change(build: GraphBuilder) -> tuple[ir.Value]:
            return (self._with_code(build, latch, own),)

        def keep(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", own),)

        if latch.anywhere is None:
            return position, change(build)[0]
        return position, build.choose(latch.anywhere, change, keep, ["new_or_code"])[0]

    def _position_of_new(self) -> int:
        node = self.writer.node
        if node.op_type == "Concat":
            return 1
        new_values = ATTENTION[node.op_type].new_values
        # Or queries, keys and values side by side.
        return new_values if node.inputs[new_values] is not None else 0

    def _with_code(self, build: GraphBuilder, latch: Latch, own: ir.Value) -> ir.Value:
        node, code = self.writer.node, latch.code(build)
        if node.op_type == "Concat":
            return build(
                "Where", build("Unsqueeze", latch.slots, [1, 3]), build("Unsqueeze", code, [1]), own, name="new"
            )
        is_written = build("Unsqueeze", latch.slots, [2])
        code = self._before_quantising(build, build("Concat", *[code] * self.heads, axis=2), own)
        if self._position_of_new() != 0:
            return build("Where", is_written, code, own, name="new")
        width = self.heads * self.head_size
        before = build("Slice", own, [0], [-width], [2])
        changed = build("Where", is_written, code, build("Slice", own, [-width], [END], [2]))
        return build("Concat", before, changed, axis=2, name="new")

    def _before_quantising(self, build: GraphBuilder, code: ir.Value, like: ir.Value) -> ir.Value:
        """New values [..., heads x head size] that the cache will hold as ``code``."""
        scale = self.writer.value_scale
        if scale is None:
            return code
        # Of the whole tensor, or of every channel.
        scaled = build("Mul", build("Cast", code, to=ir.DataType.FLOAT), build("Reshape", scale, [-1]))
        return build("CastLike", scaled, like)


def _given(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None]
