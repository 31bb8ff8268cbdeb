"""The canary: does a baked graph compute on the plan's token sequences what the model computed when it was fitted?

It distinguishes a wrong model of the same shape, whose weights are not read, from the correct one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.running.observing import observing_runner
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import Precision, stored_precision
from bakeout.models.plan import Floats, Integers, Plan, PlanError
from bakeout.models.plan.canary_check import CanaryMatch, compare_canary, fitted_tolerance, unmeasured
from bakeout.models.plan.receipt import Receipt

# Differences that rounding explains, in the units of ``compare_canary``; another model is about 1 away.
_TOLERANCE: dict[Precision, float] = {"float32": 0.01, "float16": 0.1, "quantised": 0.5}


def match_canary(graph_file: Path, plan: Plan, receipts: Sequence[Receipt]) -> tuple[CanaryMatch, ...]:
    """Run the canary through a baked graph: how near it comes, per intervention.

    ``receipts`` name the values to look at. Raises ``GraphError`` where the graph lacks one of them.
    """
    ids = plan.canary.input_ids
    # Together: a graph that leaves early, once all rows are refused, computes no values of its later layers.
    measured, precision = measure_graph(graph_file, plan, receipts, batch_size=len(ids))
    tolerance = max(_TOLERANCE[precision], fitted_tolerance(plan))
    return tuple(
        compare_canary(expected, values, intervention, tolerance)
        for expected, values, intervention in zip(plan.canary.expected, measured, plan.interventions, strict=True)
    )


def measure_graph(
    graph_file: Path, plan: Plan, receipts: Sequence[Receipt], *, batch_size: int
) -> tuple[tuple[Floats, ...], Precision]:
    """What ``Canary.expected`` holds, computed by a graph, and the precision it computes in.

    Rows that share a batch can share a scale of quantised values.
    """
    model = load_graph(graph_file)
    runner = observing_runner(graph_file, model, [name for receipt in receipts for name in _all_observed(receipt)])
    ids = plan.canary.input_ids
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    steps = [_observed_step(runner, rows) for rows in batches]
    measured = tuple(
        np.concatenate([_measured(plan, index, receipts, rows, seen) for rows, seen in steps])
        for index in range(len(plan.interventions))
    )
    return measured, stored_precision(model)


def _observed_step(runner: Runner, rows: Integers) -> tuple[Integers, Mapping[str, NDArray[Any]]]:
    """Tokens int64 [rows, tokens] that end as ``rows``, and what was observed of them."""
    if not runner.takes_one_token:
        return rows, runner.step(rows, np.ones_like(rows)).others
    cache = None
    for end in range(1, rows.shape[1] + 1):
        step = runner.step(rows[:, end - 1 : end], np.ones_like(rows[:, :end]), cache)
        cache = step.cache
    return rows[:, -1:], step.others


def require_canary(graph_file: Path, plan: Plan, receipts: Sequence[Receipt]) -> tuple[CanaryMatch, ...]:
    """``match_canary``; raises ``PlanError`` unless the graph is, by it, the model that the plan was fitted on."""
    if (lacking := unmeasured(plan.interventions, plan.canary)) is not None:
        raise PlanError(
            f"The plan's canary has no value of {lacking.title}, and so cannot tell another model.",
            "Fit the plan anew.",
        )
    matches = match_canary(graph_file, plan, receipts)
    for match in matches:
        if not match.ok and not match.skipped:
            coarse = match.tolerance >= _TOLERANCE["quantised"]
            raise PlanError(
                f"The canary does not match: on the plan's token sequences this model's {match.kind} values are "
                f"{match.distance:.2g} away from the fitted ones (at most {match.tolerance:g} is rounding).",
                "Bake the plan into the model it was fitted on, or fit one for this model."
                + (" If it is that model in few bits, use --no-canary, and measure the artifact." if coarse else ""),
            )
    return matches


def _measured(
    plan: Plan, index: int, receipts: Sequence[Receipt], ids: Integers, seen: Mapping[str, NDArray[Any]]
) -> Floats:
    """One intervention's values, as ``Canary.expected`` has them: float64 [rows, values]."""
    intervention = plan.interventions[index]
    own = sorted((receipt for receipt in receipts if receipt.intervention == index), key=lambda receipt: receipt.layer)
    # The receipts of a weight edit all name one value.
    observed = {_observed(receipt): receipt for receipt in own}
    decisive = []
    for name, receipt in observed.items():
        width = seen[name].shape[-1]
        if not intervention.edits_weights:
            width = plan.model.watched_width(intervention.watches, receipt.layer)
        values = _of_every_token(by_neuron(seen[name], width), receipt, ids.size, seen)
        # Some graphs run their FFLs on [rows * tokens, F].
        watched = values.reshape(*ids.shape, width)[..., intervention.watched(receipt.layer)]
        decisive.append(intervention.at_canary_tokens(watched, ids))
    return intervention.canary_values(np.concatenate(decisive, axis=1))


def _of_every_token(
    values: NDArray[Any], receipt: Receipt, tokens: int, seen: Mapping[str, NDArray[Any]]
) -> NDArray[Any]:
    """Values [tokens, F] of those [n, F] that an expert computes: 0 for tokens that are not sent to it."""
    if (computed := _tokens(receipt)) is None:
        return values
    every = np.zeros((tokens, values.shape[1]), values.dtype)
    every[seen[computed].reshape(-1)] = values
    return every


def by_neuron(value: NDArray[Any], width: int) -> NDArray[Any]:
    """What a graph computes in an FFL, as [tokens, F]. Raises ``PlanError`` unless F is ``width``."""
    if value.shape[-1] != width:
        raise PlanError(
            f"The plan's model has FFL width {width}, and this graph {value.shape[-1]}.",
            "Bake the plan into the model it was fitted on.",
        )
    return value.reshape(-1, width)


def _observed(receipt: Receipt) -> str:
    """The value by which an edit is checked: its input, or the value that a weight edit's receipt names."""
    return str(receipt.detail.get("observed", receipt.tensor))


def _tokens(receipt: Receipt) -> str | None:
    """The value that says which tokens an expert computes."""
    tokens = receipt.detail.get("tokens")
    return None if tokens is None else str(tokens)


def _all_observed(receipt: Receipt) -> list[str]:
    return [name for name in (_observed(receipt), _tokens(receipt)) if name is not None]
