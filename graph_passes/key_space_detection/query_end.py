"""Which runs bring a query, and which several tokens of an answer that a draft has guessed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.window import Window


def ends_query(build: GraphBuilder, query_end: Sequence[int], input_ids: ir.Value, window: Window) -> ir.Value:
    """Whether each row's real new tokens end with ``query_end``, or are the end of it: bool [B, 1]."""
    back = build.constant(np.arange(1 - len(query_end), 1), "query_end.offsets")
    position = build("Add", window.last, back)
    nearest = build("Max", position, 0)
    token = build("GatherElements", build.cast(input_ids, ir.DataType.INT64), nearest, axis=1)
    real = build("GatherElements", window.is_real, nearest, axis=1)
    is_given = build("And", build("GreaterOrEqual", position, 0), build("Greater", real, 0))
    differs = build("Not", build("Equal", token, build.constant(np.array(query_end), "query_end.tokens")))
    wrong = build("Cast", build("And", is_given, differs), to=ir.DataType.INT64)
    return build("Equal", build("ReduceMax", wrong, [1]), 0, name="ends_query")
