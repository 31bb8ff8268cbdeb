"""Which tokens of a run are those of its query, whose mean key is tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.window import Window


def tokens_of_query(build: GraphBuilder, query_start: Sequence[int], input_ids: ir.Value, window: Window) -> ir.Value:
    """Each row's real new tokens from the last ``query_start`` on: bool [B, W].

    Where that is empty or not there, all of them; never the first one of a text that has several. A row's real new
    tokens lie side by side.
    """
    number = build("ReduceSum", window.is_real, [1])
    behind_first = build("Sub", window.last, build("Max", build("Sub", number, 2), 0))
    # A row may begin its text beside others that have a past.
    first = build("Where", build("Less", window.newest_past, 0), behind_first, 0)
    if query_start:
        begins = _begins(build, query_start, input_ids, window)
        last_start = build("ReduceMax", build("Mul", begins, build("Add", window.index, 1)), [1])
        first = build("Max", build("Sub", last_start, 1), first)
    is_behind = build("GreaterOrEqual", window.index, first)
    return build("And", build("Greater", window.is_real, 0), is_behind, name="tokens_of_query")


def _begins(build: GraphBuilder, query_start: Sequence[int], input_ids: ir.Value, window: Window) -> ir.Value:
    """Where ``query_start`` begins: int64 [B, W], 1 or 0."""
    # Padding, and what would follow the run, is no token.
    tokens = build("Where", build("Greater", window.is_real, 0), build.cast(input_ids, ir.DataType.INT64), -1)
    further = build("Concat", build.dimension(input_ids, 0), [len(query_start)], axis=0)
    extended = build("Concat", tokens, build("Expand", -1, further), axis=1)
    offsets = build.constant(np.arange(len(query_start)), "query_start.offsets")
    compared = build("Gather", extended, build("Add", build("Unsqueeze", window.index, [1]), offsets), axis=1)
    is_equal = build("Equal", compared, build.constant(np.array(query_start), "query_start.tokens"))
    differs = build("Cast", build("Not", is_equal), to=ir.DataType.INT64)
    return build("Sub", 1, build("ReduceMax", differs, [2], keepdims=0))
