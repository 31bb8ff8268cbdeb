"""How regions of one shape are fitted to a skill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bakeout.models.methods.key_space_detection.cubes import Clusters
from bakeout.models.methods.key_space_detection.options import Region
from bakeout.models.plan import Floats, Floats32, Regions


@dataclass(frozen=True, eq=False)
class Probed:
    """What a skill's regions are fitted to: its probe keys, [queries, D], and their clusters.

    ``retained``: keys of queries that must not be refused, [n, D]; None where no shape in play needs them. ``dtype``:
    what is computed in, float64 to fit what is baked, float32 to choose among many.
    """

    keys: Floats | Floats32
    clusters: Clusters
    retained: Floats | Floats32 | None = None
    dtype: DTypeLike = np.float64


Marks = NDArray[np.bool_]
# The margins of a name's rows of the judged keys to the nearest region.
Refitted = Callable[[str, NDArray[np.intp]], Floats]


class Refits(Protocol):
    """Regions that are fitted to part of what was probed."""

    def fitted(self, probe: Marks, against: Marks) -> Refitted | None:
        """Fitted to the keys that are marked; None where that cannot be."""


def _nearest(keys: NDArray[np.float32], regions: Any) -> Floats:
    nearest: Floats = regions.margins(keys).min(axis=1)
    return nearest


@dataclass(frozen=True)
class Fitter:
    """One shape: its ``name``, and ``fit``, from what was probed and a floor to a region for each cluster.

    ``nearest``: the margin of each key [n, D] to the nearest region, float64 [n], for a choice among many.
    ``needs_retained``: it is fitted against retained keys; ``refits``: how it is fitted without some of the keys.
    ``uses_floor``: `floor` is the lowest deviation in it; ``counts``: the most regions a skill that a choice tries;
    ``everywhere``: whether it tries all depths jointly.
    """

    name: Region
    fit: Callable[[Probed, float], Regions]
    nearest: Callable[[NDArray[np.float32], Any], Floats] = _nearest
    needs_retained: bool = False
    refits: Callable[[Probed, Mapping[str, Floats32]], Refits] | None = None
    uses_floor: bool = False
    counts: int = 1
    everywhere: bool = False
