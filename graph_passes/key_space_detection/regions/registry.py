"""The tests of regions, by the shapes' names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.regions.cube import CubeTest
from bakeout.graph_passes.key_space_detection.regions.ellipsoid import EllipsoidTest
from bakeout.graph_passes.key_space_detection.regions.linear import HalfSpaceTest
from bakeout.graph_passes.key_space_detection.regions.region_test import RegionTest
from bakeout.graph_passes.key_space_detection.regions.rotated_cube import RotatedCubeTest
from bakeout.models.plan.kinds.regions.cube import Cubes
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids
from bakeout.models.plan.kinds.regions.linear import HalfSpaces
from bakeout.models.plan.kinds.regions.regions import Regions
from bakeout.models.plan.kinds.regions.rotated_cube import RotatedCubes

_TESTS: dict[str, Callable[[GraphBuilder, Any], RegionTest]] = {
    Cubes.name: CubeTest,
    HalfSpaces.name: HalfSpaceTest,
    Ellipsoids.name: EllipsoidTest,
    RotatedCubes.name: RotatedCubeTest,
}


def region_test(build: GraphBuilder, regions: Regions) -> RegionTest:
    """The test of regions, whose constants it adds. Raises ``GraphError`` where none is known for their shape."""
    if regions.name not in _TESTS:
        raise GraphError(f"No test in a graph is known for a {regions.noun}.", "Use a newer Bakeout.")
    return _TESTS[regions.name](build, regions)
