"""Whether a graph refuses those of the canary's sequences whose keys lie inside, and says the refusal to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bakeout.export.artifacts.manifest import receipts_for
from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.running.observing import observing_runner
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Cache, Runner
from bakeout.export.verification.graph_canary import measure_graph
from bakeout.export.verification.refusals_said import check_refusals
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import Precision
from bakeout.graph_passes.key_space_detection.detection_pass import PREFIX
from bakeout.graph_passes.key_space_detection.margins import margins_name
from bakeout.models.plan import Check, Floats, Integers, Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.reference.refusal import positions_tested

# How far the graph's own margins may be from those of its keys, in the same unit.
_ROUNDING: dict[Precision, float] = {"float32": 0.001, "float16": 0.02, "quantised": 0.02}
# Keys whose margin is this near to alpha, relative to it, may fall either way.
_TIE: dict[Precision, float] = {"float32": 0.002, "float16": 0.02, "quantised": 0.02}


def check_decisions(graph_file: Path, plan: Plan, receipts: Sequence[Receipt]) -> tuple[bool, str]:
    """Whether the graph refuses as the plan's alphas decide over the keys that the graph itself computes.

    That holds in every precision, and so do the margins that it computes of these keys. Some are also run behind the
    cache of another, and the refused ones in a decode loop until it stops (``check_refusals``).
    """
    check = plan.check
    place = next(
        (index for index, intervention in enumerate(plan.interventions) if intervention.check is not None), None
    )
    if check is None or place is None:
        return True, ""
    if plan.canary.refused is None:
        return True, "skipped: the canary of this plan is not synthesised, and no refusal is exercised"
    # One by one, as the decisions are asked for: the check's own layers are computed before any early exit.
    reader = graphs_of(graph_file)[0]
    measured, precision = measure_graph(reader, plan, receipts_for(reader, receipts), batch_size=1)
    observed = _observed(reader, check)
    margins = [_margins(observed, check, ids, np.ones_like(ids)) for ids in plan.canary.input_ids]
    at_end = np.stack([of_sequence[-1] for of_sequence in margins])
    off = float(np.abs(check.nearness_of_each(at_end) - check.nearness_of_each(measured[place])).max())
    if not off <= _ROUNDING[precision]:
        return (
            False,
            f"the graph's margins are {off:.2g} away from those of its keys (at most {_ROUNDING[precision]:g})",
        )
    # Where every token is checked, earlier ones can decide.
    decide = [np.vstack([of_sequence[:-1], last]) for of_sequence, last in zip(margins, measured[place], strict=True)]
    outside = np.array([float(check.nearness(tested).min()) for tested in decide]) - 1
    sequences = plan.canary.input_ids.tolist()
    runner = Runner(graph_file, mapped=True)
    begun = runner.generate_with_logits(sequences, 1, batch_size=1)
    refused = np.array([is_refused(logits[0]) for _, logits in begun])
    wrong = (np.abs(outside) > _TIE[precision]) & (refused != (outside < 0))
    if wrong.any():
        sequence = int(np.flatnonzero(wrong)[0])
        answered = "refused, its key in no region" if refused[sequence] else "answered, its key in a region"
        return False, f"{int(wrong.sum())} of {len(wrong)} sequences decided wrongly: sequence {sequence} is {answered}"
    if not refused.all() and not runner.takes_one_token:
        observed = observed if reader == graph_file else _observed(graph_file, check)
        # The answered one that is the farthest from the regions, and the refused ones, the deepest first.
        answered_one = int(np.where(refused, -np.inf, outside).argmax())
        rows = plan.canary.input_ids[[answered_one, *np.argsort(outside)[: int(refused.sum())].tolist()]]
        hides = runner.takes_padding and not _packs_caches(graph_file)
        if fault := _fault_behind(runner, observed, check, rows, _TIE[precision], hides=hides):
            return False, fault
    whole, said = check_refusals(graph_file, check.refusal.tolist(), sequences)
    told = f"{int(refused.sum())} of {len(refused)} sequences refused; {said}"
    uncovered = len(plan.canary.uncovered)
    left = f"; {uncovered} of {len(check.alpha)} regions not covered" if uncovered else ""
    return whole, told + left


def _fault_behind(runner: Runner, observed: Runner, check: Check, rows: Integers, tie: float, *, hides: bool) -> str:
    """What is decided wrongly of ``rows`` behind the cache of the first of them, which is answered; empty for nothing.

    The first itself is run, and the others until one is refused. ``observed`` gives the margins of what ``runner``
    runs; ``hides``: a past can be hidden by the mask, which leaves keys as they are without one, and is run too.
    """
    first = rows[0]
    cache = runner.step(first[None], np.ones_like(first[None])).cache
    # Behind a past that is read, few keys lie in a region.
    for kept in (1, 0) if hides else (1,):
        mask = np.concatenate([np.full_like(first, kept), np.ones_like(first)])
        for ids in rows:
            real, tokens = [True] * len(ids), ids.tolist()
            tested = positions_tested(
                check.positions, has_past=True, real=real, tokens=tokens, query_end=check.query_end
            )
            outside = float(check.nearness(_margins(observed, check, ids, mask, cache)).min()) - 1
            is_due = any(tested) and outside < 0
            if any(tested) and abs(outside) <= tie:
                continue
            if is_refused(runner.step(ids[None], mask[None], cache).logits[0, -1]) != is_due:
                decided = "answered, its key in a region" if is_due else "refused, its key in no region"
                return f"behind the cache of a sequence that is answered another is {decided}"
            if is_due:
                break
    return ""


def _packs_caches(graph_file: Path) -> bool:
    """Whether caches hold real tokens alone, of which the mask tells no more than how many they are."""
    return any(node.op_type == "GroupQueryAttention" for node in load_graph(graph_file).graph.all_nodes())


def _observed(graph_file: Path, check: Check) -> Runner:
    """A runner of the graph that also gives the margins of the tokens that are checked."""
    return observing_runner(graph_file, load_graph(graph_file), [margins_name(PREFIX, check.positions)])


def _margins(observed: Runner, check: Check, ids: Integers, mask: Integers, cache: Cache | None = None) -> Floats:
    """The margins that the graph computes of a sequence's checked tokens, float64 [tokens, regions]."""
    margins = observed.step(ids[None], mask[None], cache).others[margins_name(PREFIX, check.positions)]
    return margins.reshape(-1, margins.shape[-1]).astype(np.float64)
