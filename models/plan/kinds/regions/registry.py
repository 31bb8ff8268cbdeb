"""The shapes of regions, by their names in plan files and recipes."""

from __future__ import annotations

from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.regions.cube import Cubes
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids
from bakeout.models.plan.kinds.regions.linear import HalfSpaces
from bakeout.models.plan.kinds.regions.regions import Regions
from bakeout.models.plan.kinds.regions.rotated_cube import RotatedCubes

REGIONS: dict[str, type[Regions]] = {regions.name: regions for regions in (Cubes, HalfSpaces, Ellipsoids, RotatedCubes)}


def find_regions(name: str) -> type[Regions]:
    """The class of a shape. Raises ``PlanError`` for an unknown name."""
    if name not in REGIONS:
        raise PlanError(f"Key Space Detection: no region is called {name!r}.", "Use a newer Bakeout.")
    return REGIONS[name]
