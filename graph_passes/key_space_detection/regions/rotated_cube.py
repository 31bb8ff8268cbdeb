"""The test of a rotated cube: the largest distance from the centre along its directions."""

from __future__ import annotations

import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.low_rank import LowRankTest


class RotatedCubeTest(LowRankTest):
    """max_j |u_j . z| / scale_j."""

    def margin(self, build: GraphBuilder, region: int, standardised: ir.Value, projected: ir.Value) -> ir.Value:
        """The margin to one rotated cube."""
        return build("ReduceMax", build("Abs", self.scaled(build, region, projected)), [1])
