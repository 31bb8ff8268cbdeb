"""The latch: how much of the refusal has been generated, kept in a slot of a value cache.

The graph has no state of its own; what one run leaves for the next is the KV cache. A refused position's slot holds,
in every head, a pattern that no value vector has: element j is sign_j * 2^6, or sign_j * 2^7 where bit j mod 8 of the
count is set. Powers of two survive float32, float16 and bfloat16 alike. The signs are fixed, pseudo-random.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.graph.graph_builder import GraphBuilder

BITS = 8
# An element is one of these, times its sign; both are equally far from their middle.
CLEAR, SET = 2.0**6, 2.0**7
_MIDDLE, _HALF = (SET + CLEAR) / 2, (SET - CLEAR) / 2


@dataclass(frozen=True, eq=False)
class Latched:
    """The state of each row's past. ``latched``: bool [B, 1]. ``count``: int64 [B, 1], the number of refusal tokens
    generated so far, 1 where the row is not latched.
    """

    latched: ir.Value
    count: ir.Value


def latch_signs(head_size: int) -> NDArray[np.float32]:
    """The signs of a slot's elements: float32 [head_size], the same on every machine."""
    stream = b"".join(
        hashlib.sha256(f"bakeout latch {block}".encode()).digest() for block in range(-(-head_size // 256))
    )
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[:head_size]
    return np.where(bits == 1, 1, -1).astype(np.float32)


def latch_codes(longest: int, head_size: int) -> NDArray[np.float32]:
    """The patterns for the counts 1 .. longest: float32 [longest, head_size]."""
    counts = np.arange(1, longest + 1)[:, None]
    is_set = (counts >> (np.arange(head_size) % BITS)) & 1
    return latch_signs(head_size) * np.where(is_set == 1, SET, CLEAR).astype(np.float32)


def read_latch(
    build: GraphBuilder, past_value: ir.Value, newest: ir.Value, longest: int, head_size: int, unit: float = 1.0
) -> Latched:
    """Read each row's slot ``newest`` (int64 [B, 1], -1 for none), in head 0 of ``past_value`` [B, heads, slots,
    head_size], which holds ``unit`` for a code's 1.

    A row is latched where that slot holds the pattern with a count of 1 .. ``longest``. A past of no slots is read as
    a slot of zeros, which no pattern is.
    """
    slot = _slot(build, past_value, newest, head_size)
    # A code of 1 is what the cache holds of it.
    signs = build.constant(latch_signs(head_size) / np.float32(unit), "latch.signs")
    magnitude = build("Mul", build.cast(slot, ir.DataType.FLOAT), signs)
    from_middle = build("Abs", build("Sub", magnitude, _number(build, "middle", _MIDDLE)))
    deviation = build("Abs", build("Sub", from_middle, _number(build, "half", _HALF)))
    is_pattern = build("LessOrEqual", build("ReduceMax", deviation, [1]), _number(build, "none", 0.0))

    weights = np.zeros(head_size, np.float32)
    weights[:BITS] = 2.0 ** np.arange(BITS) / (SET - CLEAR)
    over_clear = build("Sub", magnitude, _number(build, "clear", CLEAR))
    stored = build("ReduceSum", build("Mul", over_clear, build.constant(weights, "latch.bit_weights")), [1])
    is_count = build(
        "And",
        build("Greater", stored, _number(build, "none", 0.0)),
        build("LessOrEqual", stored, _number(build, "longest", float(longest))),
    )
    has_past = build("GreaterOrEqual", newest, 0)
    latched = build("And", build("And", is_pattern, is_count), has_past, name="is_latched")
    return Latched(latched, build("Where", latched, build.cast(stored, ir.DataType.INT64), 1, name="count"))


def may_be_latched(build: GraphBuilder, past_value: ir.Value, newest: ir.Value) -> ir.Value:
    """Whether any row may be latched, as one element of its slot tells: one bool, never false where one is.

    For a past of floats that has slots; ``newest`` as in ``read_latch``.
    """
    positive = int(np.flatnonzero(latch_signs(BITS) > 0)[0])
    unit = build.constant(np.array([0, 1, 0]), "latch.unit_of_slots")
    place = build("Add", build("Mul", newest, unit), build.constant(np.array([0, 0, positive]), "latch.positive"))
    element = build.cast(build("GatherND", past_value, place, batch_dims=1), ir.DataType.FLOAT)
    is_code = build("GreaterOrEqual", element, _number(build, "clear", CLEAR))
    # Compared before they are reduced: a maximum may lose what stands beside a NaN.
    return build("Greater", build("ReduceMax", build("Cast", is_code, to=ir.DataType.INT64)), 0)


def _slot(build: GraphBuilder, past_value: ir.Value, slot: ir.Value, head_size: int) -> ir.Value:
    """[B, head_size]. Gathering nothing from an empty past is allowed; gathering something would not be."""
    slot = build("Unsqueeze", build("Max", slot, 0), [2, 3])
    # From all heads: OpenVINO gathers only where the other dimensions are equal.
    spread = build("Expand", slot, build("Concat", [1], build.dimension(past_value, 1), [1, head_size], axis=0))
    at_most_one = build("Slice", spread, [0], build.dimension(past_value, 2), [2])
    read = build("Slice", build("GatherElements", past_value, at_most_one, axis=2), [0], [1], [1])
    zeros = build(
        "Expand",
        build.cast(_number(build, "none", 0.0), _dtype(past_value)),
        build("Concat", build.dimension(past_value, 0), [1, 1, head_size], axis=0),
    )
    return build("Squeeze", build("Slice", build("Concat", read, zeros, axis=2), [0], [1], [2]), [1, 2])


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None, "a graph input has a type"
    return value.dtype


def _number(build: GraphBuilder, name: str, number: float) -> ir.Value:
    return build.constant(np.array(number, np.float32), f"latch.{name}")
