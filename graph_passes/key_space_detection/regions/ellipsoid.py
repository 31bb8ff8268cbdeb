"""The test of an ellipsoid: the distance from the centre, scaled along its directions and beside them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.low_rank import LowRankTest
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids


class EllipsoidTest(LowRankTest):
    """sqrt(|U^T z / scale|^2 + (|z|^2 - |U^T z|^2) / rest^2): by Pythagoras the same as with z - U U^T z."""

    def __init__(self, build: GraphBuilder, regions: Ellipsoids) -> None:
        super().__init__(build, regions)
        self._rest = build.constant((1 / regions.rest**2).astype(np.float32), "rest")

    def margin(self, build: GraphBuilder, region: int, standardised: ir.Value, projected: ir.Value) -> ir.Value:
        """The margin to one ellipsoid."""
        along = _squared(build, self.scaled(build, region, projected))
        beside = build("Sub", _squared(build, standardised), _squared(build, projected))
        # Rounding can leave it below 0.
        beside = build("Max", beside, build.constant(np.array(0, np.float32), "nothing_beside"))
        return build("Sqrt", build("Add", along, build("Mul", beside, build("Gather", self._rest, region))))


def _squared(build: GraphBuilder, values: ir.Value) -> ir.Value:
    """The squared length of each row: float32 [N, 1]."""
    return build("ReduceSum", build("Mul", values, values), [1])
