"""What a graph computes of regions of one shape."""

from __future__ import annotations

from abc import ABC, abstractmethod

import onnx_ir as ir

from bakeout.graph_passes.graph.graph_builder import GraphBuilder


class RegionTest(ABC):
    """The margins to all regions of a check, in float32; the regions' constants are initialisers."""

    @abstractmethod
    def of_few(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """The margins of one token a row, a value named ``margin``: float32 [B, regions] from float32 [B, D]."""

    @abstractmethod
    def of_many(self, build: GraphBuilder, keys: ir.Value) -> ir.Value:
        """The margins of all tokens, in memory of about the keys' size: float32 [N, regions] from float32 [N, D]."""
