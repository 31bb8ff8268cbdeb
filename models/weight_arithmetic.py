"""The arithmetic of weight edits on stored weights: NumPy alone, a block of rows at a time, and a receipt for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Floats32, Integers, Intervention, LowRankUpdate, PlanError, Role, ZeroColumns
from bakeout.models.receipt import Receipt

# The types that weights are edited in, by their names in safetensors.
EDITABLE = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# An update of which less than this share is left after rounding has rounded away. Weights lie on the stored type's
# grid already, so what is below half a step is lost wherever it is added: rounding does not average out.
SURVIVES = 0.5
# Rows of W whose float64 copies are in memory at once.
_ROWS = 256
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class WeightChange:
    """What one intervention of a plan does to one weight W [out, in].

    ``columns``: int64 [n], those that become 0; or else ``left`` [out, rank] and ``right`` [rank, in], float32, whose
    product is added.
    """

    intervention: int
    kind: str
    layer: int
    role: Role
    columns: Integers | None = None
    left: Floats32 | None = None
    right: Floats32 | None = None

    @property
    def count(self) -> int:
        """How many columns, or the rank."""
        if self.columns is not None:
            return len(self.columns)
        assert self.right is not None
        return len(self.right)


def weight_changes(interventions: Iterable[Intervention]) -> tuple[WeightChange, ...]:
    """The changes that a plan's weight edits make, in the plan's order: the order in which they are made."""
    return tuple(
        change for index, intervention in enumerate(interventions) for change in _changes_of(index, intervention)
    )


def _changes_of(index: int, intervention: Intervention) -> Iterator[WeightChange]:
    if isinstance(intervention, ZeroColumns):
        for zeroed in intervention.layers:
            yield WeightChange(index, intervention.kind, zeroed.layer, "down", columns=zeroed.columns)
    elif isinstance(intervention, LowRankUpdate):
        for update in intervention.updates:
            yield WeightChange(
                index, intervention.kind, update.layer, update.role, left=update.left, right=update.right
            )


def require_shape(change: WeightChange, shape: tuple[int, ...]) -> None:
    """Raise ``PlanError`` unless ``change`` is one of a weight W of ``shape`` [out, in]."""
    if change.columns is not None:
        fits = len(shape) == 2 and change.columns[-1] < shape[1]
    else:
        assert change.left is not None and change.right is not None
        fits = shape == (len(change.left), change.right.shape[1])
    if not fits:
        raise PlanError(
            f"{_where(change)}: the plan's change does not fit a weight of shape {shape}.",
            "Bake the plan into the model it was fitted on.",
        )


def change_weight(weight: NDArray[Any], change: WeightChange, *, stored: NDArray[Any], **found: Any) -> Receipt:
    """Change W [out, in], float32, float16 or bfloat16, in place, and return the receipt.

    Computed in float64 and rounded to float32, then to the stored type, as torch converts. ``weight`` is a view of
    ``stored``, the tensor as it lies in its file, of which the digests are taken; ``found`` are the receipt's ``node``
    and ``tensor``, and whatever else belongs into its ``detail``.

    In ``detail``: ``role``, ``dtype``, and the Frobenius norms of W before (``norm_before``), of the change asked for
    (``norm_asked``) and of the change as it is after rounding (``norm_realised``); ``share_realised`` is how much of
    the change asked for lies in the realised one, <asked, realised> / <asked, asked>.

    Raises ``BakeoutError`` where less than ``SURVIVES`` of an update is left after rounding, or it is all zero, and
    where W holds or would hold what is not a finite number. Zeroed columns are exactly zero: nothing rounds away.
    """
    require_shape(change, weight.shape)
    before = _digest(stored)
    sums = _zero_columns(weight, change.columns) if change.columns is not None else _add_product(weight, change)
    _require_realised(change, weight.dtype, sums)
    return Receipt(
        intervention=change.intervention,
        kind=change.kind,
        layer=change.layer,
        node=found.pop("node"),
        tensor=found.pop("tensor"),
        count=change.count,
        before=before,
        after=_digest(stored),
        detail={
            "role": change.role,
            "dtype": weight.dtype.name,
            "norm_before": _rounded(sums.before**0.5),
            "norm_asked": _rounded(sums.asked**0.5),
            "norm_realised": _rounded(sums.realised**0.5),
            "share_realised": _rounded(sums.share),
            **found,
        },
    )


@dataclass
class _Sums:
    """Squared Frobenius norms, and the inner product of the change asked for with the realised one."""

    before: float = 0.0
    asked: float = 0.0
    realised: float = 0.0
    common: float = 0.0

    def add(self, before: NDArray[np.float64], asked: NDArray[np.float64], realised: NDArray[np.float64]) -> None:
        self.before += float(np.sum(before * before))
        self.asked += float(np.sum(asked * asked))
        self.realised += float(np.sum(realised * realised))
        self.common += float(np.sum(asked * realised))

    @property
    def share(self) -> float:
        return self.common / self.asked if self.asked else 1.0


def _zero_columns(weight: NDArray[Any], columns: Integers) -> _Sums:
    sums = _Sums()
    for rows in _blocks(weight):
        block = weight[rows].astype(np.float64)
        change = -block[:, columns]
        sums.add(block, change, change)
    weight[:, columns] = 0
    return sums


def _add_product(weight: NDArray[Any], change: WeightChange) -> _Sums:
    assert change.left is not None and change.right is not None
    sums = _Sums()
    right = change.right.astype(np.float64)
    for rows in _blocks(weight):
        block = weight[rows].astype(np.float64)
        asked = change.left[rows].astype(np.float64) @ right
        with np.errstate(over="ignore"):
            weight[rows] = (block + asked).astype(np.float32).astype(weight.dtype)
        sums.add(block, asked, weight[rows].astype(np.float64) - block)
    return sums


def _blocks(weight: NDArray[Any]) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, len(weight), _ROWS))


def _require_realised(change: WeightChange, dtype: np.dtype[Any], sums: _Sums) -> None:
    where = _where(change)
    if not np.isfinite(sums.before):
        raise BakeoutError(f"{where}: the weight holds NaN or infinite values.", "Use a sound checkpoint.")
    if not np.isfinite(sums.realised):
        raise BakeoutError(
            f"{where}: the change leaves the range of {dtype.name}.", "Store the weights in bfloat16 or float32."
        )
    if change.columns is not None:
        return
    if sums.asked == 0:
        raise PlanError(f"{where}: the update is all zero, so it would change nothing.")
    if sums.share < SURVIVES:
        raise BakeoutError(
            f"{where}: the change rounds away in {dtype.name}: of the norm {sums.asked**0.5:.3g} asked for, "
            f"{max(sums.share, 0.0):.0%} is left.",
            "Bake into a checkpoint or graph of higher precision, or fit a larger change.",
        )


def _where(change: WeightChange) -> str:
    return f"Intervention {change.intervention} ({change.kind}), layer {change.layer}, {change.role}"


def _digest(stored: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).hexdigest()


def _rounded(value: float) -> float:
    """To six digits: sums differ in the last ones from machine to machine, and artifacts must not."""
    return float(f"{value:.{_DIGITS}g}")
