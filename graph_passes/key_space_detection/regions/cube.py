"""The cube test: the largest distance from the centre, in deviations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.region_test import RegionTest, Rows, in_parts
from bakeout.models.plan.kinds.regions.cube import Cubes


class CubeTest(RegionTest):
    """``centre`` and ``precision`` (1 / deviation): float32 [cubes, D]."""

    def __init__(self, build: GraphBuilder, cubes: Cubes) -> None:
        self._count = len(cubes.centre)
        self._centre = build.constant(cubes.centre.astype(np.float32), "centre")
        self._precision = build.constant((1 / cubes.deviation).astype(np.float32), "precision")

    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """All cubes at once, or in parts."""
        key = build("Unsqueeze", keys, [1])

        def deviations(rows: Rows) -> ir.Value:
            from_centre = build("Sub", key, rows(self._centre))
            return build("ReduceMax", build("Abs", build("Mul", from_centre, rows(self._precision))), [2])

        farthest = in_parts(build, self._count, deviations)
        # Squeezed by a node of its own: OpenVINO fuses what follows a reduction that squeezes, and subtracts wrongly.
        return build("Squeeze", farthest, [2], name="margin")

    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One cube after the other: all would be cubes times the keys."""
        margins = []
        for cube in range(self._count):
            from_centre = build("Sub", keys, build("Gather", self._centre, cube))
            deviations = build("Abs", build("Mul", from_centre, build("Gather", self._precision, cube)))
            margins.append(build("ReduceMax", deviations, [1]))
        return margins[0] if self._count == 1 else build("Concat", *margins, axis=1)
