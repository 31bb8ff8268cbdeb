"""The margins of key vectors to every region of a check, in float32, and which of them are inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.region_test import BankTest
from bakeout.graph_passes.key_space_detection.regions.registry import region_test
from bakeout.graph_passes.key_space_detection.window import Window
from bakeout.models.plan import KeySpaceDetection, Positions

# How many numbers a bank of regions has whose test costs more than a branch around it.
BANK = 2**18
# How many tensors are joined at a time: a stage of WebGPU binds eight, the result among them.
_JOINED = 6


def margins_name(prefix: str, positions: Positions) -> str:
    """What the margins are called in a graph: of a row's tested key, [B, regions], or of every new token's."""
    return f"{prefix}.margins" if positions == "every" else f"{prefix}.margin"


class Margins:
    """The test of a plan's regions, with ``alpha``, float32 [regions], as an initialiser.

    ``widths``: F of each of the plan's layers. ``count``: the number of regions. ``are_many``: whether testing them
    costs more than a branch does.
    """

    def __init__(self, build: GraphBuilder, detection: KeySpaceDetection, widths: Sequence[int]) -> None:
        self.count, dimensions = detection.regions.shape
        self.are_many = self.count * dimensions >= BANK
        self._widths = widths
        self._test = region_test(build, detection.regions)
        self._alpha = build.constant(detection.alpha.astype(np.float32), "alpha")

    def of_rows(self, build: GraphBuilder, rows: Sequence[ir.Value]) -> ir.Value:
        """The margins of one key of each row, its ``keys_of_rows``: float32 [B, regions]."""
        return self._test.of_few(build, joined(build, rows))

    def where_tested(self, build: GraphBuilder, any_tested: ir.Value, rows: Sequence[ir.Value]) -> ir.Value:
        """The same, computed where any row is tested; zeros, float32 [1, regions], for answers, which are not."""
        names = []

        def margin(build: GraphBuilder) -> tuple[ir.Value]:
            value = self.of_rows(build, rows)
            names.append(value.name)
            value.name = f"{value.name}.tested"
            return (value,)

        def nothing(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", build.constant(np.zeros((1, self.count), np.float32), "no_margin")),)

        (either,) = build.choose(any_tested, margin, nothing, ["margin"])
        (either.name,) = names
        return either

    def near_at_all(self, build: GraphBuilder, keys: Sequence[ir.Value], window: Window, batch: ir.Value) -> ir.Value:
        """As ``at_all``, but for margins beyond ``alpha``: those of a bank may be any that are beyond it as well.

        Of a bank all pairs of a token and a region are tested roughly first, and then those alone that may be inside;
        or all again, where these are more than the tokens.
        """
        if not self.are_many or not isinstance(self._test, BankTest):
            return self.at_all(build, keys, window, batch)
        test, flat = self._test, self._rows(build, keys)
        least = test.at_least(build, flat)
        pairs = build("NonZero", self._is_inside(build, least), name="near_pairs")

        def exactly(build: GraphBuilder) -> tuple[ir.Value]:
            token, region = build("Gather", pairs, 0), build("Gather", pairs, 1)
            margin = test.of_pairs(build, build("Gather", flat, token), region)
            place = build("Concat", build("Unsqueeze", token, [1]), build("Unsqueeze", region, [1]), axis=1)
            margins = build("ScatterND", least, place, build("Squeeze", margin, [1]))
            return (self._by_token(build, margins, window, batch),)

        def all_again(build: GraphBuilder) -> tuple[ir.Value]:
            return (self._by_token(build, test.of_many(build, flat), window, batch, "margins"),)

        are_few = build("LessOrEqual", build.dimension(pairs, 1), build.dimension(flat, 0), name="near_are_few")
        return build.choose(are_few, exactly, all_again, ["near_margins"])[0]

    def at_all(self, build: GraphBuilder, keys: Sequence[ir.Value], window: Window, batch: ir.Value) -> ir.Value:
        """The margins of every new position, float32 [B, W, regions]."""
        return self._by_token(build, self._test.of_many(build, self._rows(build, keys)), window, batch, "margins")

    def inside(self, build: GraphBuilder, margins: ir.Value) -> ir.Value:
        """Whether any region holds the key: bool [..., 1] from float32 [..., regions]."""
        zero = build.constant(np.array(0, np.float32), "zero")
        nearest = build("ReduceMin", build("Sub", margins, self._alpha), [-1])
        return build("LessOrEqual", nearest, zero, name="inside")

    def _is_inside(self, build: GraphBuilder, margins: ir.Value) -> ir.Value:
        """Region by region, whether it holds the key, or whether it is unknown: bool of the shape of ``margins``."""
        zero = build.constant(np.array(0, np.float32), "zero")
        return build("Not", build("Greater", build("Sub", margins, self._alpha), zero))

    def _rows(self, build: GraphBuilder, keys: Sequence[ir.Value]) -> ir.Value:
        """The keys of all tokens: float32 [N, D]."""
        return joined(build, [_flat(build, key, width) for key, width in zip(keys, self._widths, strict=True)])

    def _by_token(
        self, build: GraphBuilder, margins: ir.Value, window: Window, batch: ir.Value, name: str | None = None
    ) -> ir.Value:
        """[B, W, regions] from [N, regions]."""
        shape = build("Concat", batch, window.length, [self.count], axis=0)
        return build("Reshape", margins, shape, name=name)


def keys_of_rows(
    build: GraphBuilder,
    keys: Sequence[ir.Value],
    widths: Sequence[int],
    window: Window,
    batch: ir.Value,
    counted: ir.Value | None = None,
) -> list[ir.Value]:
    """The key of each row's last real token, or its mean key over the ``counted`` ones (bool [B, W]), layer by layer.

    [B, F] each. A key is [B, W, F] or [B * W, F].
    """
    if counted is not None:
        return _means(build, keys, widths, window, batch, counted)
    row = build("Unsqueeze", build("Mul", build.range(batch), window.length), [1])
    position = build("Squeeze", build("Add", row, window.last), [1])
    return [
        build("Gather", _flat(build, key, width), position, axis=0) for key, width in zip(keys, widths, strict=True)
    ]


def joined(build: GraphBuilder, keys: Sequence[ir.Value]) -> ir.Value:
    """The layers' keys, [N, F] each, side by side: float32 [N, D]."""
    values = [build("Cast", key, to=ir.DataType.FLOAT) for key in keys]
    while len(values) > 1:
        groups = [values[start : start + _JOINED] for start in range(0, len(values), _JOINED)]
        values = [group[0] if len(group) == 1 else build("Concat", *group, axis=-1) for group in groups]
    return values[0]


def _means(
    build: GraphBuilder,
    keys: Sequence[ir.Value],
    widths: Sequence[int],
    window: Window,
    batch: ir.Value,
    counted: ir.Value,
) -> list[ir.Value]:
    zero = build.constant(np.array(0, np.float32), "zero")
    number = build("ReduceSum", build("Cast", counted, to=ir.DataType.FLOAT), [1])
    # A row without a token is not tested.
    number = build("Where", build("Greater", number, zero), number, build.constant(np.array(1, np.float32), "one"))
    each = build("Unsqueeze", counted, [2])
    means = []
    for key, width in zip(keys, widths, strict=True):
        shape = build("Concat", batch, window.length, [width], axis=0)
        by_token = build("Cast", build("Reshape", key, shape), to=ir.DataType.FLOAT)
        # A product would let padding's NaN in.
        total = build("ReduceSum", build("Where", each, by_token, zero), [1], keepdims=0)
        means.append(build("Div", total, number))
    return means


def _flat(build: GraphBuilder, key: ir.Value, width: int) -> ir.Value:
    return build("Reshape", key, [-1, width])
