"""The cube test: the largest distance from the centre, in deviations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.region_test import BankTest, Rows, in_parts
from bakeout.models.plan.kinds.regions.cube import Cubes

# The share of all dimensions in which a bank's cubes are tested first.
_TELLING = 32


class CubeTest(BankTest):
    """``centre`` and ``precision`` (1 / deviation): float32 [cubes, D]."""

    def __init__(self, build: GraphBuilder, cubes: Cubes) -> None:
        self._cubes = cubes
        self._count = len(cubes.centre)
        self._centre = build.constant(cubes.centre.astype(np.float32), "centre")
        self._precision = build.constant((1 / cubes.deviation).astype(np.float32), "precision")

    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """All cubes at once, or in parts."""
        return self._farthest(build, keys, self._centre, self._precision, "margin")

    def at_least(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """The margins in a few dimensions: the largest distance of all is not below that of some."""
        few = build.constant(telling_dimensions(self._cubes), "telling_dimensions")
        key, centre, precision = (
            build("Gather", values, few, axis=1) for values in (keys, self._centre, self._precision)
        )
        return self._farthest(build, key, centre, precision, "margin_at_least")

    def of_pairs(self, build: GraphBuilder, keys: ir.Value, region: ir.Value) -> ir.Value:
        """Each token's distance from the centre of its cube."""
        from_centre = build("Sub", keys, build("Gather", self._centre, region))
        return build(
            "ReduceMax", build("Abs", build("Mul", from_centre, build("Gather", self._precision, region))), [1]
        )

    def _farthest(
        self, build: GraphBuilder, keys: ir.Value, centre: ir.Value, precision: ir.Value, name: str
    ) -> ir.Value:
        key = build("Unsqueeze", keys, [1])

        def deviations(rows: Rows) -> ir.Value:
            from_centre = build("Sub", key, rows(centre))
            return build("ReduceMax", build("Abs", build("Mul", from_centre, rows(precision))), [2])

        farthest = in_parts(build, self._count, deviations)
        # Squeezed by a node of its own: OpenVINO fuses what follows a reduction that squeezes, and subtracts wrongly.
        return build("Squeeze", farthest, [2], name=name)

    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One cube after the other: all would be cubes times the keys."""
        margins = []
        for cube in range(self._count):
            from_centre = build("Sub", keys, build("Gather", self._centre, cube))
            deviations = build("Abs", build("Mul", from_centre, build("Gather", self._precision, cube)))
            margins.append(build("ReduceMax", deviations, [1]))
        return margins[0] if self._count == 1 else build("Concat", *margins, axis=1)


def telling_dimensions(cubes: Cubes) -> NDArray[np.int64]:
    """The dimensions in which the cubes are the narrowest, beside how far their centres lie apart: int64, sorted."""
    count = -(-cubes.centre.shape[1] // _TELLING)
    with np.errstate(divide="ignore"):
        width = cubes.deviation.mean(axis=0) / cubes.centre.std(axis=0)
    return np.sort(np.argsort(width, kind="stable")[:count])
