"""The arithmetic of weight edits on stored weights: NumPy alone, a block of rows at a time, and a receipt for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Integers, Intervention, PlanError, WeightChange
from bakeout.models.plan.receipt import Receipt

# The types that weights are edited in, by their names in safetensors.
EDITABLE = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# An update of which less than this share is left after rounding has rounded away. Weights lie on the stored type's
# grid already, so what is below half a step is lost wherever it is added: rounding does not average out.
SURVIVES = 0.5
# How many numbers are computed with at once: their float64 copies stay in the processor's cache.
_BLOCK = 1 << 16
_DIGITS = 6


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which BLAS computes in the thread that calls it, process-wide: enter it from one thread alone.

    Blocks are too small to be shared out: BLAS threads wait for one another longer than they compute.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield


@dataclass(frozen=True, eq=False)
class PlannedChange:
    """A change of one weight, and the intervention that makes it: its place in the plan, and its kind."""

    intervention: int
    kind: str
    change: WeightChange

    @property
    def where(self) -> str:
        """The intervention and the weight, for errors."""
        return f"Intervention {self.intervention} ({self.kind}), layer {self.change.layer}, {self.change.place}"

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``PlanError`` unless the change is one of a weight W of ``shape`` [out, in]."""
        if not self.change.fits(shape):
            raise PlanError(
                f"{self.where}: the plan's change does not fit a weight of shape {shape}.",
                "Bake the plan into the model it was fitted on.",
            )


def planned_changes(interventions: Iterable[Intervention]) -> tuple[PlannedChange, ...]:
    """The changes that a plan's weight edits make, in the plan's order: the order in which they are made."""
    return tuple(
        PlannedChange(index, intervention.kind, change)
        for index, intervention in enumerate(interventions)
        for change in intervention.weight_changes()
    )


@dataclass
class Norms:
    """Squared Frobenius norms of a weight before a change, of the change asked for and of the change realised after
    rounding; ``common`` is the inner product of the latter two.
    """

    before: float = 0.0
    asked: float = 0.0
    realised: float = 0.0
    common: float = 0.0

    def add(self, before: NDArray[np.float64], asked: NDArray[np.float64], realised: NDArray[np.float64]) -> None:
        """Count some more of the weight."""
        self.before += float(np.vdot(before, before))
        self.asked += float(np.vdot(asked, asked))
        self.realised += float(np.vdot(realised, realised))
        self.common += float(np.vdot(asked, realised))

    @property
    def share(self) -> float:
        """How much of the change asked for lies in the realised one: <asked, realised> / <asked, asked>."""
        return self.common / self.asked if self.asked else 1.0


def change_weight(weight: NDArray[Any], planned: PlannedChange) -> Norms:
    """Change W [out, in], float32, float16 or bfloat16, in place.

    Computed in float64 and rounded to float32, then to the stored type, as torch converts. Raises ``BakeoutError``
    where less than ``SURVIVES`` of a change is left after rounding, or it is all zero, and where W holds or would hold
    what is not a finite number. Exact changes (``WeightChange.exact``) never round away.
    """
    planned.require_shape(weight.shape)
    change = planned.change
    touched = change.touched()
    norms = _change_blocks(weight, change) if touched is None else _change_columns(weight, change, touched)
    _require_realised(planned, weight.dtype, norms)
    return norms


def change_with_receipt(
    weight: NDArray[Any],
    planned: PlannedChange,
    *,
    stored: NDArray[Any],
    node: str,
    tensor: str,
    before: str | None = None,
    **detail: Any,
) -> Receipt:
    """``change_weight``, and the receipt for it.

    ``weight`` is a view of ``stored``, the tensor as it lies in its file, of which the digests are taken; ``before`` is
    the first of them, if an earlier change of the same tensor has computed it. ``detail`` of the receipt holds, beside
    what is given: ``role`` (the change's ``place``), ``dtype``, the Frobenius norms ``norm_before``, ``norm_asked`` and
    ``norm_realised``, and ``share_realised`` (``Norms.share``).
    """
    before = before or _digest(stored)
    norms, change = change_weight(weight, planned), planned.change
    return Receipt(
        intervention=planned.intervention,
        kind=planned.kind,
        layer=change.layer,
        node=node,
        tensor=tensor,
        count=change.count,
        before=before,
        after=_digest(stored),
        detail={
            "role": change.place,
            "dtype": weight.dtype.name,
            "norm_before": _rounded(norms.before**0.5),
            "norm_asked": _rounded(norms.asked**0.5),
            "norm_realised": _rounded(norms.realised**0.5),
            "share_realised": _rounded(norms.share),
            **detail,
        },
    )


def _change_blocks(weight: NDArray[Any], change: WeightChange) -> Norms:
    norms = Norms()
    whole = slice(None)
    # In blocks of what lies together.
    is_transposed = weight.strides[0] < weight.strides[1]
    lying = weight.T if is_transposed else weight
    for rows, block in _blocks(lying):
        before = block.astype(np.float64)
        asked = change.asked(before.T, whole, rows).T if is_transposed else change.asked(before, rows, whole)
        # Norms show whether a value leaves the type's range, which is an error.
        with np.errstate(over="ignore", invalid="ignore"):
            block[:] = (before + asked).astype(np.float32).astype(weight.dtype)
            norms.add(before, asked, block.astype(np.float64) - before)
    return norms


def _change_columns(weight: NDArray[Any], change: WeightChange, columns: Integers) -> Norms:
    norms = Norms()
    nothing = np.zeros(0)
    for _, block in _blocks(weight):
        norms.add(block.astype(np.float64), nothing, nothing)
    before = weight[:, columns].astype(np.float64)
    asked = change.asked(before, slice(None), columns)
    with np.errstate(over="ignore", invalid="ignore"):
        weight[:, columns] = (before + asked).astype(np.float32).astype(weight.dtype)
        norms.add(nothing, asked, weight[:, columns].astype(np.float64) - before)
    return norms


def _blocks(weight: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """A few rows at a time: which, and a view of them."""
    size = max(1, _BLOCK // weight.shape[1])
    for start in range(0, len(weight), size):
        rows = slice(start, min(start + size, len(weight)))
        yield rows, weight[rows]


def _require_realised(planned: PlannedChange, dtype: np.dtype[Any], norms: Norms) -> None:
    where = planned.where
    if not np.isfinite(norms.before):
        raise BakeoutError(f"{where}: the weight holds NaN or infinite values.", "Use a sound checkpoint.")
    if not np.isfinite(norms.realised):
        raise BakeoutError(
            f"{where}: the change leaves the range of {dtype.name}.", "Store the weights in bfloat16 or float32."
        )
    if planned.change.exact:
        return
    if norms.asked == 0:
        raise PlanError(f"{where}: the update is all zero, so it would change nothing.")
    if norms.share < SURVIVES:
        raise BakeoutError(
            f"{where}: the change rounds away in {dtype.name}: of the norm {norms.asked**0.5:.3g} asked for, "
            f"{max(norms.share, 0.0):.0%} is left.",
            "Bake into a checkpoint or graph of higher precision, or fit a larger change.",
        )


def _digest(stored: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).hexdigest()


def _rounded(value: float) -> float:
    """To six digits: norms differ in the last ones from machine to machine, and artifacts must not."""
    return float(f"{value:.{_DIGITS}g}")
