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
from bakeout.models.plan import Floats32, Integers, Intervention, LowRankUpdate, PlanError, Role, ZeroColumns
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


def change_weight(weight: NDArray[Any], change: WeightChange) -> Norms:
    """Change W [out, in], float32, float16 or bfloat16, in place.

    Computed in float64 and rounded to float32, then to the stored type, as torch converts. Raises ``BakeoutError``
    where less than ``SURVIVES`` of an update is left after rounding, or it is all zero, and where W holds or would hold
    what is not a finite number. Zeroed columns are exactly zero: nothing rounds away.
    """
    require_shape(change, weight.shape)
    if change.columns is not None:
        norms = _zero_columns(weight, change.columns)
    else:
        assert change.left is not None and change.right is not None
        norms = _add_product(weight, change.left, change.right)
    _require_realised(change, weight.dtype, norms)
    return norms


def change_with_receipt(
    weight: NDArray[Any],
    change: WeightChange,
    *,
    stored: NDArray[Any],
    node: str,
    tensor: str,
    before: str | None = None,
    **detail: Any,
) -> Receipt:
    """``change_weight``, and the receipt for it.

    ``weight`` is a view of ``stored``, the tensor as it lies in its file, of which the digests are taken; ``before`` is
    the first of them, where an earlier change of the same tensor has told it. The receipt says in ``detail``, beside
    what is given: ``role``, ``dtype``, the Frobenius norms ``norm_before``, ``norm_asked`` and ``norm_realised``, and
    ``share_realised`` (``Norms.share``).
    """
    before = before or _digest(stored)
    norms = change_weight(weight, change)
    return Receipt(
        intervention=change.intervention,
        kind=change.kind,
        layer=change.layer,
        node=node,
        tensor=tensor,
        count=change.count,
        before=before,
        after=_digest(stored),
        detail={
            "role": change.role,
            "dtype": weight.dtype.name,
            "norm_before": _rounded(norms.before**0.5),
            "norm_asked": _rounded(norms.asked**0.5),
            "norm_realised": _rounded(norms.realised**0.5),
            "share_realised": _rounded(norms.share),
            **detail,
        },
    )


def _zero_columns(weight: NDArray[Any], columns: Integers) -> Norms:
    norms = Norms()
    nothing = np.zeros(0)
    for block in _blocks(weight):
        exact = block.astype(np.float64)
        norms.add(exact, nothing, nothing)
    change = -weight[:, columns].astype(np.float64)
    norms.add(nothing, change, change)
    weight[:, columns] = 0
    return norms


def _add_product(weight: NDArray[Any], left: Floats32, right: Floats32) -> Norms:
    norms = Norms()
    if weight.strides[0] < weight.strides[1]:  # in blocks of what lies together
        weight, left, right = weight.T, right.T, left.T
    exact_right = right.astype(np.float64)
    rows = 0
    for block in _blocks(weight):
        before = block.astype(np.float64)
        asked = left[rows : rows + len(block)].astype(np.float64) @ exact_right
        rows += len(block)
        # What leaves the type's range is found in the norms, and told there.
        with np.errstate(over="ignore", invalid="ignore"):
            block[:] = (before + asked).astype(np.float32).astype(weight.dtype)
            norms.add(before, asked, block.astype(np.float64) - before)
    return norms


def _blocks(weight: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of a few rows each."""
    rows = max(1, _BLOCK // weight.shape[1])
    return (weight[start : start + rows] for start in range(0, len(weight), rows))


def _require_realised(change: WeightChange, dtype: np.dtype[Any], norms: Norms) -> None:
    where = _where(change)
    if not np.isfinite(norms.before):
        raise BakeoutError(f"{where}: the weight holds NaN or infinite values.", "Use a sound checkpoint.")
    if not np.isfinite(norms.realised):
        raise BakeoutError(
            f"{where}: the change leaves the range of {dtype.name}.", "Store the weights in bfloat16 or float32."
        )
    if change.columns is not None:
        return
    if norms.asked == 0:
        raise PlanError(f"{where}: the update is all zero, so it would change nothing.")
    if norms.share < SURVIVES:
        raise BakeoutError(
            f"{where}: the change rounds away in {dtype.name}: of the norm {norms.asked**0.5:.3g} asked for, "
            f"{max(norms.share, 0.0):.0%} is left.",
            "Bake into a checkpoint or graph of higher precision, or fit a larger change.",
        )


def _where(change: WeightChange) -> str:
    return f"Intervention {change.intervention} ({change.kind}), layer {change.layer}, {change.role}"


def _digest(stored: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).hexdigest()


def _rounded(value: float) -> float:
    """To six digits: norms differ in the last ones from machine to machine, and artifacts must not."""
    return float(f"{value:.{_DIGITS}g}")
