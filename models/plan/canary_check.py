"""Comparing a model's canary with the plan's. NumPy alone: graphs are baked on machines without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bakeout.models.plan import Canary, Floats, Intervention, Plan, PlanError

# In the units of ``compare_canary``: how far rounding moves values that were measured on a model in half precision.
_FITTED_IN = {"float16": 0.1, "bfloat16": 0.1}


def fitted_tolerance(plan: Plan) -> float:
    """The tolerance for what the plan's canary was measured in, as its provenance has it; 0 for float32."""
    computed_in = plan.provenance.get("computed_in")
    dtypes = computed_in.get("dtypes") if isinstance(computed_in, dict) else None
    return max((_FITTED_IN.get(str(dtype), 0.0) for dtype in dtypes or ()), default=0.0)


@dataclass(frozen=True)
class CanaryMatch:
    """How far a model is from the one a plan was fitted on, by one intervention's canary.

    ``distance`` is a mean over the ``compared`` values, of |measured - expected| in the unit of the intervention's kind
    (``Intervention.canary_unit``); NaN where there was nothing to compare, infinite where a measured value is not
    finite. ``kind`` is the intervention's.
    """

    kind: str
    distance: float
    compared: int
    tolerance: float

    @property
    def skipped(self) -> bool:
        """Whether nothing could be compared, because the plan knows none of the values."""
        return self.compared == 0

    @property
    def ok(self) -> bool:
        """Whether the model is near enough. A comparison that was skipped is not ok."""
        return self.distance <= self.tolerance


def unmeasured(interventions: Sequence[Intervention], canary: Canary) -> Intervention | None:
    """The first intervention that ``canary`` has no value of for no reason, so that any model would pass it.

    The reasons are a coin, and that all sequences are refused. Neither leaves a canary without any value.
    """
    known = [not np.isnan(values).all() for values in canary.expected]
    has_check = any(intervention.check is not None for intervention in interventions)
    # Plans of 0.1.0 and 0.2.0 do not list what is refused.
    is_refused = has_check if canary.refused is None else all(canary.refused)
    if any(known) and (is_refused or any(intervention.is_stochastic for intervention in interventions)):
        return None
    return next((entry for entry, is_known in zip(interventions, known, strict=True) if not is_known), None)


def compare_canary(expected: Floats, measured: Floats, intervention: Intervention, tolerance: float) -> CanaryMatch:
    """Compare what was measured with the plan's values for ``intervention``: both float64 [sequences, values].

    ``tolerance`` depends on the dtype the model runs in. Raises ``PlanError`` where the shapes differ.
    """
    if measured.shape != expected.shape:
        raise PlanError(f"The canary has shape {expected.shape}, and {measured.shape} was measured.")
    unit = np.broadcast_to(intervention.canary_unit(expected), expected.shape)
    comparable = ~np.isnan(expected)
    compared = int(comparable.sum())
    if compared == 0:
        return CanaryMatch(intervention.kind, float("nan"), 0, tolerance)
    values = measured[comparable]
    finite = bool(np.all(np.isfinite(values)))
    distance = float(np.mean(np.abs(values - expected[comparable]) / unit[comparable])) if finite else float("inf")
    return CanaryMatch(intervention.kind, distance, compared, tolerance)
