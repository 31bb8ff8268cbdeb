"""The refusal in the graph against the automaton that runs token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeout.graph_passes.key_space_detection.latch import Latched
from bakeout.graph_passes.key_space_detection.refusal import (
    SUPPRESSED,
    SUPPRESSED_END,
    refusal_logits,
    refusal_tokens_matched,
)
from bakeout.graph_passes.key_space_detection.window import read_window
from bakeout.models.reference.refusal import said_after

from tests.graph_passes.small_graphs import evaluate

# Few different tokens, so that refusals repeat themselves and conversations fall back into their middle.
_TOKENS = st.integers(0, 2)
_ROWS = 4


@st.composite
def _windows(draw: st.DrawFn) -> dict[str, Any]:
    """A refusal and a batch: per row whether it is latched, the count, left padding, and which tokens count."""
    width = draw(st.integers(1, 9))
    refusal = draw(st.lists(_TOKENS, min_size=2, max_size=6))
    padding = [draw(st.integers(0, width - 1)) for _ in range(_ROWS)]
    return {
        "refusal": refusal,
        "tokens": [draw(st.lists(_TOKENS, min_size=width, max_size=width)) for _ in range(_ROWS)],
        "count": [draw(st.none() | st.integers(1, len(refusal))) for _ in range(_ROWS)],
        "padding": padding,
        "first": [draw(st.integers(before, width - 1)) for before in padding],
    }


def _matched(case: dict[str, Any]) -> Any:
    tokens = np.array(case["tokens"])
    rows, width = tokens.shape
    latched = np.array([[count is not None] for count in case["count"]])
    real = np.arange(width) >= np.array(case["padding"])[:, None]
    # A row that is not latched is refused from its position ``first`` on: the tokens after that one count.
    counts = latched | (np.arange(width) > np.array(case["first"])[:, None])

    def build(builder: Any, input_ids: Any, mask: Any, counts: Any, latched: Any, count: Any) -> Any:
        window = read_window(builder, input_ids, mask)
        refusal = np.array(case["refusal"])
        return [refusal_tokens_matched(builder, refusal, input_ids, counts, Latched(latched, count), window)]

    (matched,) = evaluate(
        build,
        {
            "input_ids": tokens,
            "mask": np.concatenate([np.ones((rows, 2)), real], axis=1).astype(np.int64),
            "counts": counts,
            "latched": latched,
            "count": np.array([[count or 1] for count in case["count"]]),
        },
    )
    return matched


@settings(max_examples=40, deadline=None)
@given(_windows())
def test_all_positions_at_once_are_the_automaton_step_by_step(case: dict[str, Any]) -> None:
    matched = _matched(case)
    for row, (tokens, count) in enumerate(zip(case["tokens"], case["count"], strict=True)):
        if count is None:
            first = case["first"][row]
            expected = [1] * (first + 1) + said_after(case["refusal"], 1, tokens[first + 1 :])
            assert (matched[row] + 1).tolist() == expected
        else:
            padding = case["padding"][row]
            assert (matched[row, padding:] + 1).tolist() == said_after(case["refusal"], count, tokens[padding:])


def test_a_window_that_continues_the_refusal_advances_with_each_position() -> None:
    case = {"refusal": [5, 6, 7, 8, 1], "tokens": [[5, 6, 7, 8]], "count": [1], "padding": [0], "first": [0]}
    assert _matched(case).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_the_logits_leave_one_choice_under_any_sampling(dtype: ir.DataType) -> None:
    matched = np.array([[0, 1], [2, 2]])
    refusal = np.array([7, 3, 1])
    (logits,) = evaluate(
        lambda builder, matched: [refusal_logits(builder, refusal, (), matched, 10, dtype)], {"matched": matched}
    )
    assert logits.dtype == dtype.numpy()
    assert logits.shape == (2, 2, 10)
    assert np.array_equal(logits.argmax(axis=-1), refusal[matched])
    others = np.delete(logits, 1, axis=-1)
    assert np.array_equal(np.unique(others), np.array([SUPPRESSED, 0]))
    assert np.array_equal(logits[..., 1], np.array([[SUPPRESSED_END, SUPPRESSED_END], [0, 0]]))
    (held,) = evaluate(
        lambda builder, matched: [refusal_logits(builder, refusal, (4, 9), matched, 10, dtype)], {"matched": matched}
    )
    assert (held[..., [4, 9]] == SUPPRESSED_END).all()
    assert np.array_equal(np.delete(held, [4, 9], axis=-1), np.delete(logits, [4, 9], axis=-1))
    hot = np.exp(logits.astype(np.float64) / 1000)
    assert (hot.max(axis=-1) / hot.sum(axis=-1) > 1 - 1e-12).all()
