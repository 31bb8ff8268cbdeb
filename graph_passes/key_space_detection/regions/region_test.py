"""What a graph computes of regions of one shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder

# So many regions at once of a bank: what their test writes for one token then stays in a processor's cache.
TOGETHER = 64

Rows = Callable[[ir.Value], ir.Value]


class RegionTest(ABC):
    """The margins to all regions of a check, in float32; the regions' constants are initialisers."""

    @abstractmethod
    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """The margins of one token a row, a value named ``margin``: float32 [B, regions] from float32 [B, D]."""

    @abstractmethod
    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """The margins of all tokens, in memory of about the keys' size: float32 [N, regions] from float32 [N, D]."""


class BankTest(RegionTest):
    """A test that costs little where it is enough to know that a margin is large."""

    @abstractmethod
    def at_least(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """What no margin of ``of_pairs`` is below, in whatever order it is summed: float32 [N, regions]."""

    @abstractmethod
    def of_pairs(self, build: GraphBuilder, keys: ir.Value, region: ir.Value) -> ir.Value:
        """The margins of one region a token: float32 [P, 1] from float32 [P, D] and ``region``, int64 [P]."""


def in_parts(build: GraphBuilder, count: int, test: Callable[[Rows], ir.Value]) -> ir.Value:
    """The margins that ``test`` computes of ``count`` regions, [B, regions], a part of a large bank after the other.

    ``test`` asks for the rows of its constants that are tested together.
    """
    if count <= 2 * TOGETHER:
        return test(lambda constant: constant)

    def rows(first: int) -> Rows:
        return lambda constant: build("Slice", constant, [first], [min(first + TOGETHER, count)], [0])

    return build("Concat", *(test(rows(first)) for first in range(0, count, TOGETHER)), axis=1)
