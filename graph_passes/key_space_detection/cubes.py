"""The cube test of Key Space Detection: the margin of key vectors to every cube, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.window import Window
from bakeout.models.plan import KeySpaceDetection


class Cubes:
    """The constants of a plan's cubes as initialisers: ``centre`` and ``precision`` (1 / deviation) [cubes, D],
    ``alpha`` [cubes], all float32.
    """

    def __init__(self, build: GraphBuilder, detection: KeySpaceDetection) -> None:
        self._count = len(detection.centre)
        self._width = detection.centre.shape[1] // len(detection.layers)
        self._centre = build.constant(detection.centre.astype(np.float32), "centre")
        self._precision = build.constant((1 / detection.deviation).astype(np.float32), "precision")
        self._alpha = build.constant(detection.alpha.astype(np.float32), "alpha")

    def margins_at_last(
        self, build: GraphBuilder, keys: Sequence[ir.Value], window: Window, batch: ir.Value
    ) -> ir.Value:
        """The margins of each row's last real token, float32 [B, cubes]. A key is [B, W, F] or [B * W, F]."""
        row = build("Unsqueeze", build("Mul", build.range(batch), window.length), [1])
        position = build("Squeeze", build("Add", row, window.last), [1])
        chosen = [build("Gather", self._flat(build, key), position, axis=0) for key in keys]
        key = self._joined(build, chosen)
        from_centre = build("Sub", build("Unsqueeze", key, [1]), self._centre)
        farthest = build("ReduceMax", build("Abs", build("Mul", from_centre, self._precision)), [2])
        # Squeezed by a node of its own: OpenVINO fuses what follows a reduction that squeezes, and subtracts wrongly.
        return build("Squeeze", farthest, [2], name="margin")

    def margins_at_all(
        self, build: GraphBuilder, keys: Sequence[ir.Value], window: Window, batch: ir.Value
    ) -> ir.Value:
        """The margins of every new position, float32 [B, W, cubes]. One cube after the other: all would be cubes times
        the keys.
        """
        key = self._joined(build, [self._flat(build, key) for key in keys])
        margins = []
        for cube in range(self._count):
            from_centre = build("Sub", key, build("Gather", self._centre, cube))
            deviations = build("Abs", build("Mul", from_centre, build("Gather", self._precision, cube)))
            margins.append(build("ReduceMax", deviations, [1]))
        flat = margins[0] if self._count == 1 else build("Concat", *margins, axis=1)
        return build("Reshape", flat, build("Concat", batch, window.length, [self._count], axis=0), name="margins")

    def inside(self, build: GraphBuilder, margins: ir.Value) -> ir.Value:
        """Whether any cube holds the key: bool [..., 1] from float32 [..., cubes]."""
        zero = build.constant(np.array(0, np.float32), "zero")
        nearest = build("ReduceMin", build("Sub", margins, self._alpha), [-1])
        return build("LessOrEqual", nearest, zero, name="inside")

    def _flat(self, build: GraphBuilder, key: ir.Value) -> ir.Value:
        return build("Reshape", key, [-1, self._width])

    def _joined(self, build: GraphBuilder, keys: Sequence[ir.Value]) -> ir.Value:
        single = [build("Cast", key, to=ir.DataType.FLOAT) for key in keys]
        return single[0] if len(single) == 1 else build("Concat", *single, axis=-1)
