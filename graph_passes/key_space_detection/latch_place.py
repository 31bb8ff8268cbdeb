"""Where the latch is kept: the cache that it survives in best, chosen among all that a graph has.

Best is the last layer's that holds every position in a floating type. Where there is none, a window's cache holds the
newest slot too, which is all that the next run reads; and 8-bit integers hold a latch of their own magnitudes.
"""

from __future__ import annotations

import onnx_ir as ir

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import Anatomy
from bakeout.graph_passes.graph.caches import KeyValues
from bakeout.graph_passes.key_space_detection.cache_writer import CacheWriter, find_writer
from bakeout.graph_passes.key_space_detection.latch import BITS
from bakeout.graph_passes.key_space_detection.value_cache import ValueCache

# Of heads, and of values in one: what a graph says is written into it as constants.
_MOST = 2**16
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def choose_value_cache(anatomy: Anatomy, layer: int | None = None) -> ValueCache:
    """The value cache that is to carry the latch: with ``layer`` the one of this number.

    Raises ``GraphError``, with the reason for each kind of cache, where the graph has none that can.
    """
    if not anatomy.caches:
        raise GraphError(
            "The graph has no KV cache, which carries a refusal from one token to the next.",
            "Export the model with past keys and values (optimum: --task text-generation-with-past).",
        )
    chosen: CacheWriter | None = None
    reasons: dict[str, int] = {}
    for cache in reversed(anatomy.caches):
        if layer is not None and cache.layer != layer:
            continue
        writer = find_writer(cache)
        reason = _reason_against(cache, writer)
        if reason is not None or writer is None:
            reasons[reason or ""] = cache.layer
        elif chosen is None or _rank(writer) < _rank(chosen):
            chosen = writer
    if chosen is None:
        told = "; ".join(f"{reason} (layer {layer})" for reason, layer in reasons.items())
        raise GraphError(
            f"No value cache of the graph can carry a refusal from one token to the next: {told}.",
            "Export the model with optimum or the genai builder, with a cache in a floating type or int8.",
        )
    return ValueCache(chosen)


def _rank(writer: CacheWriter) -> tuple[bool, bool, bool]:
    """Lower is better: floating before quantised, all positions before a window's, full attention before local."""
    return writer.value_scale is not None, writer.forgets, writer.is_local


def _reason_against(cache: KeyValues, writer: CacheWriter | None) -> str | None:
    """Why a cache cannot carry the latch."""
    if writer is None:
        node = cache.present_value.producer()
        written_by = "nothing" if node is None else f"{node.domain}::{node.op_type}".removeprefix("::")
        return (
            "new values are not appended to past ones by a Concat or an attention operator "
            f"({written_by} writes {cache.present_value.name})"
        )
    if not writer.in_order:
        return "the provider keeps a window of it, in an order that the graph does not tell"
    shape, head_size, dtype = cache.past_value.shape, writer.head_size, cache.past_value.dtype
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or head_size is None:
        return f"it has the shape {shape}, not [batch, heads, slots, head size] with known heads and head size"
    if not (0 < shape[1] <= _MOST and 0 < head_size <= _MOST):
        return f"the graph says that it has {shape[1]} heads of {head_size} values"
    if head_size < BITS:
        return f"its heads have {head_size} elements, and the latch needs {BITS}"
    if dtype not in _FLOATS and (dtype != ir.DataType.INT8 or writer.value_scale is None):
        return f"its values are {'of no type' if dtype is None else dtype.name.lower()}, which hold no latch"
    return None
