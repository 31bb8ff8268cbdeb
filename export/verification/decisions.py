"""Whether a graph refuses those of the canary's sequences whose keys lie inside, and says the refusal to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bakeout.export.artifacts.manifest import receipts_for
from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.running.observing import observing_runner
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.export.verification.graph_canary import measure_graph
from bakeout.export.verification.refusals_said import check_refusals
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import Precision
from bakeout.graph_passes.key_space_detection.detection_pass import PREFIX
from bakeout.graph_passes.key_space_detection.margins import margins_name
from bakeout.models.plan import Floats, Integers, Plan, Positions
from bakeout.models.plan.receipt import Receipt

# How far the graph's own margins may be from those of its keys, in the same unit.
_ROUNDING: dict[Precision, float] = {"float32": 0.001, "float16": 0.02, "quantised": 0.02}
# Keys whose margin is this near to alpha, relative to it, may fall either way.
_TIE: dict[Precision, float] = {"float32": 0.002, "float16": 0.02, "quantised": 0.02}


def check_decisions(graph_file: Path, plan: Plan, receipts: Sequence[Receipt]) -> tuple[bool, str]:
    """Whether the graph refuses as the plan's alphas decide over the keys that the graph itself computes.

    That holds in every precision, and so do the margins that it computes of these keys. The refused sequences are also
    run in a decode loop until it stops (``check_refusals``).
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
    margins = _margins(reader, check.positions, plan.canary.input_ids)
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
    begun = Runner(graph_file, mapped=True).generate_with_logits(sequences, 1, batch_size=1)
    refused = np.array([is_refused(logits[0]) for _, logits in begun])
    wrong = (np.abs(outside) > _TIE[precision]) & (refused != (outside < 0))
    if wrong.any():
        sequence = int(np.flatnonzero(wrong)[0])
        answered = "refused, its key in no region" if refused[sequence] else "answered, its key in a region"
        return False, f"{int(wrong.sum())} of {len(wrong)} sequences decided wrongly: sequence {sequence} is {answered}"
    whole, said = check_refusals(graph_file, check.refusal.tolist(), sequences)
    told = f"{int(refused.sum())} of {len(refused)} sequences refused; {said}"
    uncovered = len(plan.canary.uncovered)
    left = f"; {uncovered} of {len(check.alpha)} regions not covered" if uncovered else ""
    return whole, told + left


def _margins(graph_file: Path, positions: Positions, input_ids: Integers) -> list[Floats]:
    """The margins that the graph computes of each sequence's checked tokens, float64 [tokens, regions]."""
    name = margins_name(PREFIX, positions)
    runner = observing_runner(graph_file, load_graph(graph_file), [name])
    seen = [runner.step(ids[None], np.ones_like(ids[None])).others[name] for ids in input_ids]
    return [margins.reshape(-1, margins.shape[-1]).astype(np.float64) for margins in seen]
