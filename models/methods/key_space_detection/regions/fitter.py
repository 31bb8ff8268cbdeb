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


class LeftOut(Protocol):
    """Regions that are fitted to part of what was probed."""

    def fitted(self, probe: NDArray[np.bool_], against: NDArray[np.bool_]) -> Callable[[str, NDArray[np.intp]], Floats]:
        """Fitted to the keys that are marked: the margins of a name's rows of the judged keys to the nearest region."""


def _nearest(keys: NDArray[np.float32], regions: Any) -> Floats:
    nearest: Floats = regions.margins(keys).min(axis=1)
    return nearest


FitLeftOut = Callable[[Probed, Mapping[str, Floats32]], LeftOut]


@dataclass(frozen=True)
class Fitter:
    """One shape: its ``name``, and ``fit``, from what was probed and a floor to a region for each cluster.

    ``nearest``: the margin of each key [n, D] to the nearest region, float64 [n], for a choice among many.
    ``needs_retained``: it is fitted against retained keys; ``left_out``: how it is fitted without some of the keys.
    ``uses_floor``: `floor` is the lowest deviation in it; ``counts``, ``layers``: the most regions a skill that a
    choice tries, and the most layers jointly.
    """

    name: Region
    fit: Callable[[Probed, float], Regions]
    nearest: Callable[[NDArray[np.float32], Any], Floats] = _nearest
    needs_retained: bool = False
    left_out: FitLeftOut | None = None
    uses_floor: bool = False
    counts: int = 1
    layers: int = 3
