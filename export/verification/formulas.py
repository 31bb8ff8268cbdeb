"""Comparing a graph's own values with a plan's formulas, for graphs whose tokens no reference can reproduce."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.artifacts.manifest import receipts_for
from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.running.observing import observing_runner
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.export.verification.graph_canary import by_neuron
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.graph_passes.neuron_adjust import adjusted_value
from bakeout.models.plan import AdjustedLayer, Check, Coin, Floats, Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track

_STANDARD_ERRORS = 4
# Log-odds and margins (relative to alpha) this near to the point of decision may fall on either side: the outputs that
# are added to observe them let ONNX Runtime fuse less, which changes the rounding.
_TIE = 0.02

Values = Mapping[str, NDArray[Any]]


@dataclass
class Tally:
    """What was compared with the formulas so far.

    ``looks_forgotten``: values whose density in the forget set is the higher; ``shifted`` of them, and how many the
    probabilities of a stochastic coin add up to, with their ``variance``. ``refused`` of ``asked`` prompts; ``near`` of
    them were too near to a region's face to tell.
    """

    looks_forgotten: int = 0
    shifted: int = 0
    expected: float = 0.0
    variance: float = 0.0
    asked: int = 0
    refused: int = 0
    near: int = 0


def check_formulas(
    graph_file: Path, plan: Plan, receipts: Sequence[Receipt], prompts: Sequence[Sequence[int]], track: Track
) -> tuple[bool, str]:
    """Whether the interventions change the graph's own values by their formulas, in float64, prompt by prompt.

    Neuron Adjust: every selected value is left alone or shifted according to its own log-odds; with a stochastic coin,
    the number of shifted values is the sum of the probabilities, within four standard errors. Key Space
    Detection: the prompts whose own key vector lies in a region, and no others, are refused, to the refusal's end.
    """
    reader = graphs_of(graph_file)[0]
    receipts = receipts_for(reader, receipts)
    model = load_graph(reader)
    tolerance = 1e-3 if stored_precision(model) == "float32" else 1e-2
    observed = [name for receipt in receipts for name in _observed(receipt, plan)]
    looking, shipped = observing_runner(reader, model, observed, mapped=False), Runner(graph_file)
    tally = Tally()
    for prompt in track(prompts, "comparing the interventions with their formulas", len(prompts)):
        ids = np.array([prompt], dtype=np.int64)
        step = looking.step(ids, np.ones_like(ids))
        seen = step.others
        for receipt in receipts:
            adjustment = plan.interventions[receipt.intervention].adjustment
            if adjustment is not None:
                before, after = (
                    by_neuron(seen[name], plan.model.width_of(receipt.layer)) for name in _observed(receipt, plan)
                )
                layer = next(adjusted for adjusted in adjustment.layers if adjusted.layer == receipt.layer)
                if fault := _fault_of_adjustment(adjustment.coin, layer, before, after, tolerance, tally):
                    return False, f"{plan.model.name_of(layer.layer)}: {fault}"
        for index, intervention in enumerate(plan.interventions):
            if (check := intervention.check) is not None:
                fault = _fault_of_decision(
                    check, prompt, _keys(plan, index, receipts, seen), is_refused(step.logits[0, -1]), tally
                ) or _fault_of_refusal(check, shipped, prompt)
                if fault:
                    return False, f"prompt {tally.asked} of {len(prompts)}: {fault}"
    draws = plan.is_stochastic
    if draws and abs(tally.shifted - tally.expected) > _STANDARD_ERRORS * math.sqrt(tally.variance) + 1:
        return False, f"{tally.shifted:,} values are shifted, {tally.expected:,.0f} expected"
    return True, _summary(tally, draws)


def _summary(tally: Tally, draws: bool) -> str:
    told = []
    if tally.looks_forgotten:
        told.append(
            f"{tally.shifted:,} of {tally.looks_forgotten:,} values that look like the forget set's shifted as the "
            f"formula says" + (f", {tally.expected:,.0f} expected" if draws else "")
        )
    if tally.asked:
        told.append(
            f"{tally.refused} of {tally.asked} prompts refused, those whose own keys lie in a region"
            + (f" ({tally.near} too near to decide)" if tally.near else "")
        )
    return "; ".join(told)


def _observed(receipt: Receipt, plan: Plan) -> list[str]:
    """The values to observe for an edit of the graph: its input and, for an adjustment, its output."""
    intervention = plan.interventions[receipt.intervention]
    read = [] if intervention.edits_weights else [receipt.tensor]
    return read + ([adjusted_value(receipt)] if intervention.adjustment is not None else [])


def _fault_of_adjustment(
    coin: Coin, layer: AdjustedLayer, before: NDArray[Any], after: NDArray[Any], tolerance: float, tally: Tally
) -> str | None:
    """What is wrong with a layer's values [tokens, F] after the adjustment, if anything."""
    others = np.delete(np.arange(before.shape[1]), layer.neurons)
    if not np.array_equal(before[:, others], after[:, others]):
        return "a neuron that was not selected is changed"
    was, became = before[:, layer.neurons].astype(np.float64), after[:, layer.neurons].astype(np.float64)
    log_odds, transported = layer.log_odds(was), layer.shifted(was)
    probability = np.where(log_odds > 0, 1 / (1 + np.exp(-np.maximum(log_odds, 0))), 0.0)
    moved = was + probability * (transported - was) if coin == "expected" else transported
    scale = tolerance * (1 + np.abs(was) + np.abs(moved))
    is_left, is_moved = np.abs(became - was) <= scale, np.abs(became - moved) <= scale
    if not (is_left | is_moved).all():
        return "a value is neither left alone nor shifted by the formula"
    if (~is_left & (log_odds < -_TIE)).any():
        return "a value is shifted although its density in the retain set is the higher"
    if coin != "stochastic" and (~is_moved & (log_odds > _TIE)).any():
        return "a value is left alone although its density in the forget set is the higher"
    is_nearer = np.abs(became - moved) < np.abs(became - was)
    tally.looks_forgotten += int((log_odds > 0).sum())
    tally.shifted += int((is_nearer & (log_odds > 0)).sum())
    tally.expected += float(probability.sum())
    tally.variance += float((probability * (1 - probability)).sum())
    return None


def _keys(plan: Plan, index: int, receipts: Sequence[Receipt], seen: Values) -> Floats:
    """The key vectors of one prompt's tokens, of all layers of intervention ``index``: float64 [tokens, ...]."""
    own = sorted((entry for entry in receipts if entry.intervention == index), key=lambda entry: entry.layer)
    watched = plan.interventions[index].watches
    keys = [
        by_neuron(seen[receipt.tensor], plan.model.watched_width(watched, receipt.layer)).astype(np.float64)
        for receipt in own
    ]
    return np.concatenate(keys, axis=1)


def _fault_of_decision(check: Check, prompt: Sequence[int], keys: Floats, is_refused: bool, tally: Tally) -> str | None:
    """What is wrong with the decision over a prompt whose tokens have these keys, if anything."""
    tested = keys if check.positions == "every" else keys[check.decisive(prompt)].mean(axis=0, keepdims=True)
    # How far outside of the nearest region: of a cube relative to its alpha, below 0 inside.
    outside = float(check.nearness(check.margins(tested)).min()) - 1
    tally.asked += 1
    tally.refused += is_refused
    if abs(outside) <= _TIE:
        tally.near += 1
    elif is_refused != (outside < 0):
        return "answered although its key lies in a region" if outside < 0 else "refused, and its key lies in no region"
    return None


def _fault_of_refusal(check: Check, shipped: Runner, prompt: Sequence[int]) -> str | None:
    """What is wrong with the text of a refusal, if anything."""
    ((answer, logits),) = shipped.generate_with_logits([prompt], len(check.refusal), batch_size=1)
    if is_refused(logits[0]) and answer != check.refusal.tolist():
        return "the refusal is not complete"
    return None
