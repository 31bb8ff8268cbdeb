"""How a graph writes a run's new keys and values into an attention layer's cache.

A ``Concat`` joins past and new ones (optimum, torch's dynamo exporter), or the attention operator itself does (the
genai builder). ``GroupQueryAttention`` writes into the past's own memory where a runtime binds past and present to the
same, may forget what has left its window (``sliding_window_cache``), and may store the cache quantised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.caches import KeyValues
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.graph.linear import as_linear
from bakeout.graph_passes.key_space_detection.window import Window


@dataclass(frozen=True)
class AttentionInputs:
    """Where an attention operator has its past keys and values among its inputs, and its ``domain``.

    Its new values are input 2, or the end of input 0; its present keys and values are the outputs 1 and 2.
    """

    past_key: int
    past_value: int
    domain: str = "com.microsoft"
    new_values = 2
    present_value = 2


ATTENTION = {
    "GroupQueryAttention": AttentionInputs(3, 4),
    "MultiHeadAttention": AttentionInputs(6, 7),
    # ONNX's own, since opset 23.
    "Attention": AttentionInputs(4, 5, domain=""),
}
# The cosines by which GroupQueryAttention rotates.
_COSINES = 7
# The scale by which GroupQueryAttention divides new values, where it quantises the cache.
VALUE_SCALE = 13


@dataclass(frozen=True, eq=False)
class CacheWriter:
    """The ``node`` that writes one layer's cache.

    ``is_packed``: each row's real tokens lie in its first slots, one after the other (``read_window``).
    ``is_local``: attention looks back over a window; ``forgets``: and the cache holds not much more than that window,
    ``window`` slots at least, those in order of their positions (``in_order``) unless it is the provider that forgets.
    ``value_scale``: of a cache that it quantises.
    """

    cache: KeyValues
    node: ir.Node
    is_packed: bool = False
    window: int = -1
    forgets: bool = False
    in_order: bool = True
    value_scale: ir.Value | None = None

    @property
    def head_size(self) -> int | None:
        """How many values a head has: as the cache's shape says, or else as what reads the attention does.

        The genai builder's graphs leave it open since 0.18, for caches of several types.
        """
        shape = self.cache.past_value.shape
        if shape is not None and len(shape) == 4 and isinstance(shape[3], int):
            return shape[3]
        if (rotated := self._rotated) is not None:
            return rotated
        heads = self.node.attributes.get_int("num_heads", 0)
        linears = [linear for reader, _ in self.node.outputs[0].uses() if (linear := as_linear(reader)) is not None]
        return linears[0].inputs // heads if heads > 0 and linears else None

    @property
    def _rotated(self) -> int | None:
        """How many values of a head GroupQueryAttention rotates, where that is all: its cosines are for half."""
        if self.node.op_type != "GroupQueryAttention" or len(self.node.inputs) <= _COSINES:
            return None
        cosines, is_all = self.node.inputs[_COSINES], self.node.attributes.get_int("rotary_embedding_dim", 0) == 0
        if cosines is None or cosines.shape is None or len(cosines.shape) != 2 or not is_all:
            return None
        half = cosines.shape[1]
        return 2 * half if isinstance(half, int) else None

    @property
    def is_local(self) -> bool:
        """Whether attention looks back over a window alone."""
        return self.window > 0

    def extended(self, build: GraphBuilder, past: ir.Value, window: Window) -> ir.Value:
        """The ``past`` (keys or values) with the new slots behind it, zero where they are not in memory it shares."""
        if self.forgets:
            return build("Identity", past)
        slots = window.length
        if self.is_packed:
            slots = build("Max", build("Sub", window.total, build.dimension(past, 2)), 0)
        return build("Concat", past, zeros(build, past, slots), axis=2)


def find_writer(cache: KeyValues) -> CacheWriter | None:
    """The node that writes a cache; None where it is none of those that are known."""
    node = cache.present_value.producer()
    if node is None:
        return None
    if (node.domain, node.op_type) == ("", "Concat"):
        joins = (
            len(node.inputs) == 2 and node.inputs[0] is cache.past_value and node.attributes["axis"].as_int() in (2, -2)
        )
        return CacheWriter(cache, node) if joins else None
    known = ATTENTION.get(node.op_type)
    if known is None or node.domain != known.domain or not _reads(node, cache):
        return None
    if node.op_type != "GroupQueryAttention":
        return CacheWriter(cache, node)
    evicts = node.attributes.get_int("sliding_window_cache", 0) == 1
    return CacheWriter(
        cache,
        node,
        is_packed=True,
        window=node.attributes.get_int("local_window_size", -1),
        forgets=evicts or _is_shorter(cache.past_value),
        in_order=evicts or not _is_shorter(cache.past_value),
        value_scale=node.inputs[VALUE_SCALE] if len(node.inputs) > VALUE_SCALE else None,
    )


def zeros(build: GraphBuilder, past: ir.Value, slots: ir.Value) -> ir.Value:
    """Zeros for ``slots`` (int64 [1]) slots of a layer's cache, [B, heads, slots, head size]."""
    shape = build("Concat", build.dimension(past, 0), build.dimension(past, 1), slots, build.dimension(past, 3), axis=0)
    assert past.dtype is not None, "inputs of a graph have types"
    zero = build.constant(np.array(0, np.float32), "zero")
    return build("Expand", build("Cast", zero, to=past.dtype), shape)


def _reads(node: ir.Node, cache: KeyValues) -> bool:
    reads, inputs = ATTENTION[node.op_type], list(node.inputs)
    # MultiHeadAttention packs queries, keys and values head by head.
    if len(inputs) <= reads.past_value or len(node.outputs) <= reads.present_value:
        return False
    values = inputs[reads.new_values]
    has_values = values is not None or node.op_type == "GroupQueryAttention"
    if node.op_type == "Attention" and node.attributes.get_int("kv_num_heads", 0) == 0:
        # Its keys and values come head by head.
        return False
    return (
        has_values
        and inputs[reads.past_key] is cache.past_key
        and inputs[reads.past_value] is cache.past_value
        and node.outputs[reads.present_value] is cache.present_value
        and node.outputs[reads.present_value - 1] is cache.present_key
    )


def _is_shorter(past: ir.Value) -> bool:
    """Whether the builder has named the cache's slots as those of a window, which a provider itself forgets."""
    return past.shape is not None and "sliding" in str(past.shape[2] if len(past.shape) > 2 else "")
