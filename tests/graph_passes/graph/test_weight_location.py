"""The weights of fused linears are located by where their halves begin and how these step."""

from __future__ import annotations

import pytest

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.feed_forward import FeedForwardLayer
from bakeout.graph_passes.graph.weights.weight_location import locate_weight

from tests.graph_passes.graph.test_anatomy import small_graph

# Where the activated half of 2 * 6 numbers and the plain one begin, end and step.
Part = tuple[int, int, int]


def _fused(gate: Part, up: Part) -> FeedForwardLayer:
    parts = {"v": gate, "u": up}
    numbers = " ".join(
        f"{name}_{of} = Constant <value_ints = [{number}]> ()"
        for name, part in parts.items()
        for of, number in zip(("start", "end", "step"), part, strict=True)
    )
    slices = " ".join(f"{name} = Slice(g, {name}_start, {name}_end, axis, {name}_step)" for name in parts)
    body = f"axis = Constant <value_ints = [2]> () g = MatMul(x, fused) {numbers} {slices}"
    (layer,) = read_anatomy(small_graph(f"{body} a = Relu(v) key = Mul(u, a) logits = MatMul(key, down)")).layers
    return layer


@pytest.mark.parametrize(
    ("gate", "up", "gates", "ups"),
    [
        ((0, 6, 1), (6, 12, 1), slice(0, 6), slice(6, 12)),
        ((6, 12, 1), (0, 6, 1), slice(6, 12), slice(0, 6)),
        ((0, 6, 1), (-6, 12, 1), slice(0, 6), slice(6, 12)),
        ((0, 12, 2), (1, 12, 2), slice(0, None, 2), slice(1, None, 2)),
    ],
)
def test_halves_of_a_fused_linear_are_located(gate: Part, up: Part, gates: slice, ups: slice) -> None:
    layer = _fused(gate, up)
    assert (locate_weight(layer, "gate").rows, locate_weight(layer, "up").rows) == (gates, ups)


@pytest.mark.parametrize(
    ("gate", "up"),
    [
        ((0, 6, 1), (5, 11, 1)),
        ((0, 12, 2), (6, 12, 1)),
        ((0, 6, 1), (0, 6, 1)),
        ((1, 12, 2), (1, 12, 2)),
        ((0, 12, 2), (0, 12, 2)),
        ((5, -13, -1), (11, 5, -1)),
    ],
)
def test_other_parts_of_a_fused_linear_are_refused(gate: Part, up: Part) -> None:
    layer = _fused(gate, up)
    for role in ("gate", "up"):
        with pytest.raises(GraphError, match=f"Layer 0, {role}: it is no half of the fused linear"):
            locate_weight(layer, role)
        with pytest.raises(GraphError, match=f"Router 1, expert 3, {role}: it is no half of the fused linear"):
            locate_weight(layer, role, "router 1, expert 3")
