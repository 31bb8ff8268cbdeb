"""The margins of key vectors to every region of a check, in float32, and which of them are inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.registry import region_test
from bakeout.graph_passes.key_space_detection.window import Window
from bakeout.models.plan import KeySpaceDetection, Positions

# How many numbers a bank of regions has whose test costs more than a branch around it.
BANK = 2**18


def margins_name(prefix: str, positions: Positions) -> str:
    """What the margins are called in a graph: of the last real token, [B, regions], or of every new one."""
    return f"{prefix}.margins" if positions == "every" else f"{prefix}.margin"


class Margins:
    """The test of a plan's regions, with ``alpha``, float32 [regions], as an initialiser.

    ``widths``: F of each of the plan's layers. ``are_many``: whether testing them costs more than a branch does.
    """

    def __init__(self, build: GraphBuilder, detection: KeySpaceDetection, widths: Sequence[int]) -> None:
        self._count, dimensions = detection.regions.shape
        self.are_many = self._count * dimensions >= BANK
        self._widths = widths
        self._test = region_test(build, detection.regions)
        self._alpha = build.constant(detection.alpha.astype(np.float32), "alpha")

    def at_last(self, build: GraphBuilder, keys: Sequence[ir.Value], window: Window, batch: ir.Value) -> ir.Value:
        """The margins of each row's last real token, float32 [B, regions]. A key is [B, W, F] or [B * W, F]."""
        row = build("Unsqueeze", build("Mul", build.range(batch), window.length), [1])
        position = build("Squeeze", build("Add", row, window.last), [1])
        chosen = [
            build("Gather", self._flat(build, key, width), position, axis=0)
            for key, width in zip(keys, self._widths, strict=True)
        ]
        return self._test.of_few(build, self._joined(build, chosen))

    def where_tested(
        self, build: GraphBuilder, any_tested: ir.Value, keys: Sequence[ir.Value], window: Window, batch: ir.Value
    ) -> ir.Value:
        """The same, computed where any row is tested; zeros, float32 [1, regions], for answers, which are not."""

        def margin(build: GraphBuilder) -> tuple[ir.Value]:
            value = self.at_last(build, keys, window, batch)
            value.name = f"{value.name}.tested"
            return (value,)

        def nothing(build: GraphBuilder) -> tuple[ir.Value]:
            return (build("Identity", build.constant(np.zeros((1, self._count), np.float32), "no_margin")),)

        return build.choose(any_tested, margin, nothing, ["margin"])[0]

    def at_all(self, build: GraphBuilder, keys: Sequence[ir.Value], window: Window, batch: ir.Value) -> ir.Value:
        """The margins of every new position, float32 [B, W, regions]."""
        rows = [self._flat(build, key, width) for key, width in zip(keys, self._widths, strict=True)]
        flat = self._test.of_many(build, self._joined(build, rows))
        return build("Reshape", flat, build("Concat", batch, window.length, [self._count], axis=0), name="margins")

    def inside(self, build: GraphBuilder, margins: ir.Value) -> ir.Value:
        """Whether any region holds the key: bool [..., 1] from float32 [..., regions]."""
        zero = build.constant(np.array(0, np.float32), "zero")
        nearest = build("ReduceMin", build("Sub", margins, self._alpha), [-1])
        return build("LessOrEqual", nearest, zero, name="inside")

    def _flat(self, build: GraphBuilder, key: ir.Value, width: int) -> ir.Value:
        return build("Reshape", key, [-1, width])

    def _joined(self, build: GraphBuilder, keys: Sequence[ir.Value]) -> ir.Value:
        single = [build("Cast", key, to=ir.DataType.FLOAT) for key in keys]
        return single[0] if len(single) == 1 else build("Concat", *single, axis=-1)
