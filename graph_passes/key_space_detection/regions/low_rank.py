"""What tests share that look at keys along a few directions."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.region_test import RegionTest
from bakeout.models.plan.kinds.regions.low_rank import LowRank


class LowRankTest(RegionTest):
    """Per region ``centre`` and ``precision`` (1 / deviation), float32 [D], and ``directions`` [D, r].

    Keys are centred and standardised before they are multiplied: a product that a GPU rounds to fewer bits than
    float32 has is off by a share of the distance from the centre, and not of the keys themselves.
    """

    def __init__(self, build: GraphBuilder, regions: LowRank) -> None:
        self._centre = build.constant(regions.centre.astype(np.float32), "centre")
        self._precision = build.constant((1 / regions.deviation).astype(np.float32), "precision")
        self._directions = [
            build.constant(directions.astype(np.float32), f"directions.{region}")
            for region, directions in enumerate(regions.directions)
        ]
        self._along = build.constant((1 / regions.scale).astype(np.float32), "scale")

    @abstractmethod
    def margin(self, build: GraphBuilder, region: int, standardised: ir.Value, projected: ir.Value) -> ir.Value:
        """The margin to one region, float32 [N, 1], from z [N, D] and U^T z [N, r]."""

    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One region after the other, as for many."""
        return build("Concat", *self._each(build, keys), axis=1, name="margin")

    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One region after the other: all would be regions times the keys."""
        return build("Concat", *self._each(build, keys), axis=1)

    def _each(self, build: GraphBuilder, keys: ir.Value) -> list[ir.Value]:
        """The margins to each region: float32 [N, 1]."""
        margins = []
        for region, directions in enumerate(self._directions):
            from_centre = build("Sub", keys, build("Gather", self._centre, region))
            standardised = build("Mul", from_centre, build("Gather", self._precision, region))
            margins.append(self.margin(build, region, standardised, build("MatMul", standardised, directions)))
        return margins

    def scaled(self, build: GraphBuilder, region: int, projected: ir.Value) -> ir.Value:
        """U^T z / scale, float32 [N, r]."""
        return build("Mul", projected, build("Gather", self._along, region))
