"""The arrays of plans: their types, and what every kind of intervention requires of them. NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Array = NDArray[Any]


class PlanError(BakeoutError):
    """A plan that contradicts itself, or does not fit what it is applied to."""

    def __init__(self, cause: str, remedy: str = "Fit the plan again.") -> None:
        super().__init__(cause, remedy)


def require_layer(layer: int, where: str) -> None:
    """Raise ``PlanError`` unless ``layer`` is an index."""
    if type(layer) is not int or layer < 0:
        raise PlanError(f"{where}: layers are counted from 0.")


def require_ascending(indices: Integers, names: str, where: str) -> None:
    """Raise ``PlanError`` unless ``indices``, of the ``names`` of neurons or columns, ascend from 0 or later."""
    if indices.ndim != 1 or len(indices) == 0:
        raise PlanError(f"{where}: no {names} are named.")
    if indices[0] < 0 or bool(np.any(np.diff(indices) <= 0)):
        raise PlanError(f"{where}: the {names} are not ascending from 0.")


def require_finite(values: Floats | Floats32, what: str) -> None:
    """Raise ``PlanError`` where a value is NaN or infinite."""
    if not bool(np.all(np.isfinite(values))):
        raise PlanError(f"{what} holds NaN or infinite values.", "Probe again, in float32, and look for overflow.")
