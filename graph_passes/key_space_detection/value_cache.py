"""The last layer's value cache, which carries the latch, and how a graph writes a run's new slots into it.

A ``Concat`` joins past and new values (optimum, torch's dynamo exporter), or the attention operator itself does (the
genai builder). ``GroupQueryAttention`` writes into the past's own memory where a runtime binds past and present to the
same: no other node may stand between it and the graph's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy
from bakeout.graph_passes.graph.graph_builder import END, GraphBuilder
from bakeout.graph_passes.key_space_detection.window import Window


@dataclass(frozen=True)
class _Attention:
    """Where an attention operator of ``com.microsoft`` has its past keys and values among its inputs.

    Its new values are input 2, or the end of input 0; its present keys and values are the outputs 1 and 2.
    """

    past_key: int
    past_value: int
    new_values = 2
    present_value = 2


# Of heads, and of values in one: what a graph says is written into it as constants.
_MOST = 2**16

_ATTENTION = {"GroupQueryAttention": _Attention(3, 4), "MultiHeadAttention": _Attention(6, 7)}


class ValueCache:
    """The last layer's value cache [B, heads, slots, head size] of a decoder graph, to write codes into.

    ``is_packed``: each row's real tokens lie in its first slots, one after the other (``read_window``). Raises
    ``GraphError`` where the graph has no cache, or none that is known to be written as above.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        if not anatomy.past:
            raise GraphError(
                "The graph has no KV cache, which carries a refusal from one token to the next.",
                "Export the model with past keys and values (optimum: --task text-generation-with-past).",
            )
        self._past, self._present = anatomy.past[-1], anatomy.present[-1]
        writer = self._present.value.producer()
        if writer is None or not self._is_writer(writer):
            raise GraphError(
                "The last layer's new values are not appended to its past ones by a Concat or an attention operator "
                f"({'nothing' if writer is None else writer.op_type} writes {self._present.value.name}).",
                "Export the model with optimum or the genai builder.",
            )
        self._writer = writer
        shape = self.past.shape
        if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise GraphError(
                f"The last layer's value cache has the shape {shape}, not [batch, heads, slots, head size] with known "
                "heads and head size.",
                "Export the model with optimum or the genai builder.",
            )
        if not (0 < shape[1] <= _MOST and 0 < shape[3] <= _MOST):
            raise GraphError(f"The graph says that its value cache has {shape[1]} heads of {shape[3]} values.")
        self.heads, self.head_size = shape[1], shape[3]

    @property
    def past(self) -> ir.Value:
        """The values so far, an input of the graph."""
        return self._past.value

    @property
    def dtype(self) -> ir.DataType:
        """The type of the cache."""
        assert self.past.dtype is not None, "inputs of a graph have types"
        return self.past.dtype

    @property
    def is_packed(self) -> bool:
        """Whether the slots are those of a row's real tokens alone."""
        return self._writer.op_type == "GroupQueryAttention"

    def write_before(self, build: GraphBuilder, slots: ir.Value, code: ir.Value) -> None:
        """Let ``code`` [B or 1, W or 1, head size] take the place of the new values of every head before they are
        written, where ``slots`` (bool [B, W]) holds. Neither may depend on the last layer's attention.
        """
        position, changed = self._changed_values(build, slots, code)
        self._writer.replace_input_with(position, changed)

    def write_after(
        self, build: GraphBuilder, slots: ir.Value, code: ir.Value
    ) -> tuple[tuple[ir.Value, ir.Value], ...]:
        """As ``write_before``, for what depends on the last layer's attention: that is left as it is.

        A second writer gives the cache. Returns pairs of an output of the graph and what must take its place.
        """
        position, changed = self._changed_values(build, slots, code)
        inputs = [changed if index == position else value for index, value in enumerate(self._writer.inputs)]
        if self._writer.op_type == "Concat":
            return ((self._present.value, build("Concat", *_given(inputs), axis=_axis(self._writer))),)
        # The first one's cache becomes a copy of its own. Keys and values must be one node's, and share memory or not
        # together; what it computes of the attention is not used.
        second = build.copy(self._writer, inputs)
        return (
            (self._present.key, second.outputs[_ATTENTION[self._writer.op_type].present_value - 1]),
            (self._present.value, second.outputs[_ATTENTION[self._writer.op_type].present_value]),
        )

    def extended(self, build: GraphBuilder, past: ir.Value, window: Window) -> ir.Value:
        """Some layer's past with the new slots behind it, zero where they are not in memory that it shares."""
        slots = window.length
        if self.is_packed:
            slots = build("Max", build("Sub", window.total, build.dimension(past, 2)), 0)
        return build("Concat", past, _zeros(build, past, slots), axis=2)

    def extended_with(self, build: GraphBuilder, slots: ir.Value, code: ir.Value, window: Window) -> ir.Value:
        """The last layer's values ``extended``, with ``code`` in the new slots where ``slots`` holds."""
        is_written, code = build("Unsqueeze", slots, [1, 3]), build("Unsqueeze", code, [1])
        if not self.is_packed:
            new = build("Where", is_written, code, _zeros(build, self.past, window.length))
            return build("Concat", self.past, new, axis=2)
        extended = self.extended(build, self.past, window)
        slot = build("Unsqueeze", build("Add", window.past, build("Unsqueeze", window.index, [0])), [1, 3])
        shape = build("Concat", build.dimension(self.past, 0), [self.heads], window.length, [self.head_size], axis=0)
        slot = build("Expand", slot, shape)
        new = build("Where", is_written, code, build("GatherElements", extended, slot, axis=2))
        return build("ScatterElements", extended, slot, new, axis=2)

    def _is_writer(self, node: ir.Node) -> bool:
        past, inputs = self.past, list(node.inputs)
        if (node.domain, node.op_type) == ("", "Concat"):
            return len(inputs) == 2 and inputs[0] is past
        if node.domain != "com.microsoft" or node.op_type not in _ATTENTION:
            return False
        reads = _ATTENTION[node.op_type]
        # MultiHeadAttention packs queries, keys and values head by head.
        has_values = inputs[reads.new_values] is not None or node.op_type == "GroupQueryAttention"
        return (
            has_values
            and inputs[reads.past_key] is self._past.key
            and inputs[reads.past_value] is past
            and node.outputs[reads.present_value] is self._present.value
            and node.outputs[reads.present_value - 1] is self._present.key
        )

    def _changed_values(self, build: GraphBuilder, slots: ir.Value, code: ir.Value) -> tuple[int, ir.Value]:
        """The writer's input that brings the new values, with ``code`` in them, and its position."""
        if self._writer.op_type == "Concat":
            (new,) = _given(self._writer.inputs[1:])
            return 1, build("Where", build("Unsqueeze", slots, [1, 3]), build("Unsqueeze", code, [1]), new, name="new")
        is_written = build("Unsqueeze", slots, [2])
        code = build("Concat", *[code] * self.heads, axis=2)
        values = self._writer.inputs[_ATTENTION[self._writer.op_type].new_values]
        if values is not None:
            return _ATTENTION[self._writer.op_type].new_values, build("Where", is_written, code, values, name="new")
        # Queries, keys and values side by side.
        (packed,) = _given(self._writer.inputs[:1])
        width = self.heads * self.head_size
        before = build("Slice", packed, [0], [-width], [2])
        values = build("Slice", packed, [-width], [END], [2])
        changed = build("Where", is_written, code, values)
        return 0, build("Concat", before, changed, axis=2, name="new")


def _zeros(build: GraphBuilder, past: ir.Value, slots: ir.Value) -> ir.Value:
    """Zeros for ``slots`` (int64 [1]) slots of a layer's cache, [B, heads, slots, head size]."""
    shape = build("Concat", build.dimension(past, 0), build.dimension(past, 1), slots, build.dimension(past, 3), axis=0)
    assert past.dtype is not None, "inputs of a graph have types"
    zero = build.constant(np.array(0, np.float32), "zero")
    return build("Expand", build("Cast", zero, to=past.dtype), shape)


def _given(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None]


def _axis(concat: ir.Node) -> int:
    return concat.attributes["axis"].as_int()
