"""The linear test: a dot product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.region_test import RegionTest, in_parts
from bakeout.models.plan.kinds.regions.linear import HalfSpaces


class HalfSpaceTest(RegionTest):
    """``weight`` and ``bias``, both negated: float32 [half-spaces, D] and [half-spaces].

    Written without MatMul, which GPUs and OpenVINO may compute in fewer bits than float32 has: far from 0 keys would
    lose what separates them.
    """

    def __init__(self, build: GraphBuilder, half_spaces: HalfSpaces) -> None:
        self._count = len(half_spaces.weight)
        self._weight = build.constant((-half_spaces.weight).astype(np.float32), "weight")
        self._bias = build.constant((-half_spaces.bias).astype(np.float32), "bias")

    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """All half-spaces at once, or in parts."""
        key = build("Unsqueeze", keys, [1])
        sums = in_parts(build, self._count, lambda rows: build("ReduceSum", build("Mul", key, rows(self._weight)), [2]))
        return build("Add", build("Squeeze", sums, [2]), self._bias, name="margin")

    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One half-space after the other: all would be half-spaces times the keys."""
        sums = [
            build("ReduceSum", build("Mul", keys, build("Gather", self._weight, number)), [1])
            for number in range(self._count)
        ]
        return build("Add", sums[0] if self._count == 1 else build("Concat", *sums, axis=1), self._bias)
