"""The linear test: a dot product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.region_test import BankTest, in_parts
from bakeout.models.plan.kinds.regions.linear import HalfSpaces


class HalfSpaceTest(BankTest):
    """``weight`` and ``bias``, both negated: float32 [half-spaces, D] and [half-spaces].

    Decided without MatMul, which GPUs and OpenVINO may compute in fewer bits than float32 has: far from 0 keys would
    lose what separates them.
    """

    def __init__(self, build: GraphBuilder, half_spaces: HalfSpaces) -> None:
        self._count, self._dimensions = half_spaces.weight.shape
        self._weight = build.constant((-half_spaces.weight).astype(np.float32), "weight")
        self._bias = build.constant((-half_spaces.bias).astype(np.float32), "bias")

    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """All half-spaces at once, or in parts."""
        key = build("Unsqueeze", keys, [1])
        sums = in_parts(build, self._count, lambda rows: build("ReduceSum", build("Mul", key, rows(self._weight)), [2]))
        return build("Add", build("Squeeze", sums, [2]), self._bias, name="margin")

    def at_least(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One product of matrices, less what rounding can amount to.

        In any order a sum of D products in float32 is off by at most D u / (1 - D u) of their magnitudes' sum, u =
        2^-24, which is at most |w| |k|; factors that are rounded to the 8 bits of bfloat16 add 2^-8 and no more. With
        as much again for the sum that decides, and twice that for norms and bias, 2^-8 + 4 D u covers it all.
        """
        margin = build("Gemm", keys, self._weight, self._bias, transB=1)
        lengths = (
            build("Sqrt", build("ReduceSum", build("Mul", value, value), [1], keepdims=keep))
            for value, keep in ((keys, 1), (self._weight, 0))
        )
        magnitude = build("Add", build("Mul", *lengths), build("Abs", self._bias))
        share = build.constant(np.array(2.0**-8 + self._dimensions * 2.0**-22, np.float32), "rounding")
        return build("Sub", margin, build("Mul", magnitude, share), name="margin_at_least")

    def of_pairs(self, build: GraphBuilder, keys: ir.Value, region: ir.Value) -> ir.Value:
        """Each token's product with the weight of its half-space."""
        total = build("ReduceSum", build("Mul", keys, build("Gather", self._weight, region)), [1])
        return build("Add", total, build("Unsqueeze", build("Gather", self._bias, region), [1]))

    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """One half-space after the other: all would be half-spaces times the keys."""
        sums = [
            build("ReduceSum", build("Mul", keys, build("Gather", self._weight, number)), [1])
            for number in range(self._count)
        ]
        return build("Add", sums[0] if self._count == 1 else build("Concat", *sums, axis=1), self._bias)
