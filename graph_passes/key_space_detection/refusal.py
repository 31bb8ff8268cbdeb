"""The refusal: which of its tokens each position generates, and the logits for that.

A refused conversation is matched against the refusal by the automaton of Knuth, Morris and Pratt: once position i has
been fed, ``matched`` is the length of the longest prefix of the refusal, short of the whole, with which the
conversation ends, and the position generates the token that follows that prefix. Here all positions of a window at
once, in O(W * R): row d of a table holds the prefixes that match from position d on, and its diagonals hold, per
position, the prefixes that end there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.latch import Latched
from bakeout.graph_passes.key_space_detection.window import Window

# Finite in float16, and so low that no temperature, penalty or beam score lifts another token over the refusal's.
SUPPRESSED = -30000.0
# An end-of-text token's, if another is generated. Beam search may stop once enough beams have ended, even unlikely
# ones: these tokens must not be among the many that are equally suppressed.
SUPPRESSED_END = -60000.0


def refusal_tokens_matched(
    build: GraphBuilder,
    refusal: NDArray[np.int64],
    input_ids: ir.Value,
    counts: ir.Value,
    latched: Latched,
    window: Window,
) -> ir.Value:
    """How many tokens of the refusal the conversation ends with, at each new position: int64 [B, W], 0 .. R - 1.

    The conversation is what a latched row has generated and been fed so far, then those of ``input_ids`` [B, W] for
    which ``counts`` (bool, broadcast to [B, W]) holds.
    """
    prefixes = len(refusal) - 1
    no_token = build.constant(np.full((1, prefixes), -1), "refusal.no_tokens")
    # The past of the conversation, as a prefix of the refusal that ends where the row's real tokens begin.
    said_before = build.constant(np.concatenate([np.full(prefixes, -1), refusal[:-1]]), "refusal.said_before")
    length = build("Add", window.length, [prefixes])
    position = build.range(length)
    padding = build(
        "ReduceMin", build("Where", build.cast(window.is_real, ir.DataType.BOOL), window.index, window.length), [1]
    )
    since = build("Sub", build("Add", position, build("Sub", latched.count, 1)), padding)
    before = build("Gather", said_before, build("Max", build("Min", since, 2 * prefixes - 1), 0))
    batch = build.dimension(input_ids, 0)
    blank = build("Expand", no_token, build("Concat", batch, [prefixes], axis=0))
    fed = build("Concat", blank, build("Where", counts, build.cast(input_ids, ir.DataType.INT64), -1), axis=1)
    conversation = build("Where", build("Less", position, build("Add", padding, prefixes)), before, fed)

    start = build("Unsqueeze", position, [1])
    ahead = build(
        "Min", build("Add", start, build.constant(np.arange(prefixes), "refusal.offsets")), build("Sub", length, 1)
    )
    following = build("Gather", conversation, ahead, axis=1)
    differs = build("Not", build("Equal", following, build.constant(refusal[:-1], "refusal.prefix")))
    mismatches = build("CumSum", build.cast(differs, ir.DataType.INT32), 2)
    lengths = build.constant(np.arange(1, prefixes + 1), "refusal.prefix_lengths")
    is_match = build("Equal", mismatches, build.constant(np.array(0, np.int32), "refusal.no_mismatch"))
    matching = build("Reshape", build("Where", is_match, lengths, 0), [0, -1])
    # A prefix of j + 1 tokens ends at window position i where it starts at row prefixes + i - j.
    diagonal = prefixes * prefixes - np.arange(prefixes) * (prefixes - 1)
    ends_here = build(
        "Add",
        build("Unsqueeze", build("Mul", window.index, prefixes), [1]),
        build.constant(diagonal, "refusal.diagonal"),
    )
    return build("ReduceMax", build("Gather", matching, ends_here, axis=1), [2], keepdims=0, name="matched")


def refusal_logits(
    build: GraphBuilder,
    refusal: NDArray[np.int64],
    other_ends: Sequence[int],
    matched: ir.Value,
    vocabulary: int,
    dtype: ir.DataType,
) -> ir.Value:
    """Logits that leave one choice, [B, W, vocabulary]: 0 for the token that follows ``matched`` [B, W].

    All others have ``SUPPRESSED``, and those that end a text, the refusal's last and ``other_ends``,
    ``SUPPRESSED_END``.
    """
    shape = build("Shape", matched)
    one_each = build("Concat", shape, [1], axis=0)

    def everywhere(logit: float, name: str, where: ir.Value) -> ir.Value:
        return build("Expand", build.constant(np.array(logit, dtype.numpy()), f"refusal.{name}"), where)

    logits = everywhere(SUPPRESSED, "suppressed", build("Concat", shape, [vocabulary], axis=0))
    ends = np.array([int(refusal[-1]), *other_ends])
    end_each = build("Concat", shape, [len(ends)], axis=0) if other_ends else one_each
    end = build("Expand", build.constant(ends, "refusal.ends") if other_ends else int(ends[0]), end_each)
    logits = build("ScatterElements", logits, end, everywhere(SUPPRESSED_END, "suppressed_end", end_each), axis=2)
    token = build("Unsqueeze", build("Gather", build.constant(refusal, "refusal.tokens"), matched), [2])
    return build("ScatterElements", logits, token, everywhere(0.0, "said", one_each), axis=2)
