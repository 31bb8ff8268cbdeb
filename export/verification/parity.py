"""Parity: a baked graph against the PyTorch reference, which computes by the papers' formulas in float64."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.running.observing import observing_runner
from bakeout.export.running.overflow import overflow
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Logits
from bakeout.export.verification.formulas import check_formulas
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import Precision, stored_precision
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.data.padding import left_padded
from bakeout.models.files.writing import disk_errors
from bakeout.models.plan import Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track

NEW_TOKENS = 16
# Rows and tokens of a batch: the logits of more would take more memory than many a model.
_BATCH, _BATCH_TOKENS = 16, 512
# Neuron Adjust is discontinuous where both Gaussians are equally likely: a value within rounding of that point falls
# one way in float32 and the other in float64, and the rest of its text changes with it. That share of the answered
# prompts may differ, and never all of them. Refused ones do not count: a refusal is the same whatever the weights.
_TIES = 0.02


@dataclass(frozen=True)
class Tolerance:
    """What rounding explains. ``prompts``: the share whose greedy text must be the reference's to the token."""

    logits: float
    prompts: float


# In half precision a near tie between two tokens falls either way.
_TOLERANCE: dict[Precision, Tolerance] = {
    "float32": Tolerance(logits=1e-3, prompts=1.0),
    "float16": Tolerance(logits=0.25, prompts=0.95),
}
# The shares of a quantised graph's prompts and tokens that must agree with the unquantised reference.
_DECIDED_ALIKE, _SAID_ALIKE = 0.95, 0.7
# How far its logits must correlate with the reference's: of int4's more than 0.99 do, of another head's none.
_CORRELATION = 0.5
# By how much a margin differs in quantised weights, as a share of alpha.
_BOUNDARY = 0.05
# Random prompts, which lie outside of most regions, so that something that passes is compared.
_RANDOM = 4
_OTHER_BASE = "{} is not the model that the plan was fitted on: its weights' digest differs"


def check_parity(
    graph_file: Path, plan: Plan, base: Checkpoint, prompts: Sequence[Sequence[int]], track: Track
) -> tuple[bool, str]:
    """Whether an unquantised graph generates what the hooked base model generates, and how near its logits are.

    Greedy text of up to 16 tokens after each prompt, and the logits behind it as far as the texts agree. With a
    stochastic coin it is the first token alone, all coins on the forget set's side, in the graph as in the reference.
    """
    if base.digest != plan.model.digest:
        return False, _OTHER_BASE.format(base.directory)
    tolerance = _TOLERANCE[stored_precision(load_graph(graph_file))]
    adjusts = any(intervention.ties_in_rounding for intervention in plan.interventions)
    equal, refused, differences = 0, 0, []
    for _, answer, logits, expected, expected_logits in _answers(graph_file, plan, base, prompts, track, batch=_BATCH):
        equal += answer == expected
        if not np.isfinite(logits).all():
            return False, str(overflow())
        refused += is_refused(logits[0]) and is_refused(expected_logits[0])
        steps = min(_agreed(answer, expected) + 1, len(answer), len(expected))
        differences.append(float(np.abs(logits[:steps] - expected_logits[:steps]).max()))
    answered = len(prompts) - refused
    ties = min(math.ceil(_TIES * answered), max(answered - 1, 0)) if adjusts else 0
    # NaN is within no tolerance.
    beyond = sum(not difference <= tolerance.logits for difference in differences)
    ok = equal >= int(tolerance.prompts * len(prompts)) - ties and beyond <= ties
    exercised, told = _told(plan, refused, answered, len(prompts))
    return ok and exercised, (
        f"{equal} of {len(prompts)} prompts answered alike to the token, largest logit difference "
        f"{max(differences):.1e}, in {beyond} prompts above {tolerance.logits:g} (at most {ties}){told}"
    )


def _told(plan: Plan, refused: int, passed: int, prompts: int) -> tuple[bool, str]:
    """Whether so many prompts that are refused, and that pass, show both of the plan's check, and the words for it.

    But a plan whose canary is not synthesised, as those of Bakeout 0.1.0 and 0.2.0, cannot be held to that.
    """
    if plan.check is None:
        return True, ""
    if refused and not passed and plan.canary.refused is not None:
        told = f"; {refused} of {prompts} prompts refused by both, so nothing is proven of what passes"
        return False, f"{told}: give prompts that pass"
    if refused:
        return True, f"; {refused} of {prompts} prompts refused by both"
    needed = "" if plan.canary.refused is None else ": give prompts that are to be refused"
    return plan.canary.refused is None, f"; none of {prompts} prompts refused, so no refusal is proven{needed}"


def check_quantised(
    graph_file: Path,
    plan: Plan,
    receipts: Sequence[Receipt],
    base: Checkpoint,
    prompts: Sequence[Sequence[int]],
    track: Track,
) -> tuple[bool, str]:
    """The checks of a graph with quantised weights, which is another model than the reference's.

    The interventions must change its own values exactly by their formulas (``formulas``). Compared with the unquantised
    reference, all but 5 % of the prompts must be refused or passed alike, and for prompts that both pass, 70 % of the
    tokens generated after the same text (16 at most) must be the same: larger differences are not rounding. Not of the
    canary's sequences near a region's boundary and of a few random prompts, because rounding decides over them, and not
    with a stochastic coin, of which there is one token each; but the first logits of all that pass must correlate with
    the reference's. Prompts run one by one, because prompts that share a batch can share a scale.
    """
    if base.digest != plan.model.digest:
        return False, _OTHER_BASE.format(base.directory)
    ok, told = check_formulas(graph_file, plan, receipts, prompts, track)
    if not ok:
        return False, told
    generator = np.random.default_rng(0)
    random = generator.integers(0, plan.model.vocabulary, (_RANDOM, plan.canary.input_ids.shape[1])).tolist()
    by_chance = _near_boundary(plan) | set(map(tuple, random))
    asked = decided = steps = alike = both = 0
    correlations = []
    for prompt, answer, logits, expected, expected_logits in _answers(
        graph_file, plan, base, [*prompts, *random], track, batch=1
    ):
        if not np.isfinite(logits).all():
            return False, str(overflow())
        refused, expected_refused = is_refused(logits[0]), is_refused(expected_logits[0])
        if not refused and not expected_refused:
            correlations.append(_correlation(logits[0], expected_logits[0]))
        if plan.is_stochastic or tuple(prompt) in by_chance:
            continue
        asked += 1
        decided += refused == expected_refused
        both += refused and expected_refused
        if not refused and not expected_refused:
            agreed = _agreed(answer, expected)
            alike += agreed
            steps += agreed + (answer != expected)
    correlation = float(np.mean(correlations)) if correlations else 1.0
    # NaN, of logits that are all the same, is no correlation.
    ok = decided >= int(_DECIDED_ALIKE * asked) and alike >= _SAID_ALIKE * steps and correlation >= _CORRELATION
    exercised, refusals = _told(plan, both, len(correlations), asked)
    return ok and exercised, (
        f"quantised, its own values compared with the formulas: {told or 'none to look at'}; beside the unquantised "
        f"reference {decided} of {asked} prompts are refused or passed alike, {alike} of {steps} tokens alike that "
        f"both generate after the same text, and the logits of {len(correlations)} prompts that pass correlate "
        f"{correlation:.2f} (at least {_CORRELATION:g}){refusals}"
    )


def _correlation(logits: Logits, expected: Logits) -> float:
    own, other = (values - values.mean(dtype=np.float64) for values in (logits, expected))
    with np.errstate(invalid="ignore"):
        return float(own @ other / np.sqrt((own @ own) * (other @ other)))


def _near_boundary(plan: Plan) -> set[tuple[int, ...]]:
    """The canary's sequences that are within 5 % of a region's boundary."""
    rows = map(tuple, plan.canary.input_ids.tolist())
    for intervention, margins in zip(plan.interventions, plan.canary.expected, strict=True):
        if intervention.check is not None and plan.canary.refused is not None:
            is_near = np.abs(intervention.check.nearness(margins) - 1) < _BOUNDARY
            return {row for row, near in zip(rows, is_near, strict=True) if near}
    return set()


def _answers(
    graph_file: Path, plan: Plan, base: Checkpoint, prompts: Sequence[Sequence[int]], track: Track, *, batch: int
) -> Iterator[tuple[Sequence[int], list[int], Logits, list[int], Logits]]:
    """Each prompt, its greedy text and the logits behind it, the graph's and the reference's."""
    from bakeout.models.network.probing import batches_by_length

    new_tokens = 1 if plan.is_stochastic else NEW_TOKENS
    alike = batches_by_length([len(prompt) for prompt in prompts], batch, most_tokens=_BATCH_TOKENS)
    batches = [sorted((prompts[row] for row in rows), key=len) for rows in alike]
    # One after the other, as a large model and its artifact do not fit into memory together.
    runner = _coins_decided(graph_file) if plan.is_stochastic else Runner(graph_file, mapped=True)
    tracked = track(batches, "running the PyTorch reference", len(batches))
    decided = replace(plan, interventions=tuple(one.with_coins_decided() for one in plan.interventions))
    expected = _continuations(decided, base, runner, tracked, new_tokens)
    for rows, theirs in zip(track(batches, "comparing with it", len(batches)), expected, strict=True):
        baked = runner.generate_with_logits(rows, new_tokens, batch_size=batch)
        for prompt, own, other in zip(rows, baked, theirs, strict=True):
            yield prompt, *own, *other


def _coins_decided(graph_file: Path) -> Runner:
    """A stochastic graph that draws 0 alone (``Intervention.with_coins_decided``); of a pair the first."""
    first = graphs_of(graph_file)[0]
    graph = load_graph(first)
    in_functions = (node for function in graph.functions.values() for node in function.all_nodes())
    for node in (*graph.graph.all_nodes(), *in_functions):
        if node.op_type == "RandomUniformLike":
            node.attributes["high"] = ir.AttrFloat32("high", 0.0)
    return observing_runner(first, graph, ())


def _continuations(
    plan: Plan, base: Checkpoint, runner: Runner, batches: Iterable[Sequence[Sequence[int]]], new_tokens: int
) -> list[list[tuple[list[int], Logits]]]:
    """``Runner.generate_with_logits`` of the hooked base model, its interventions in float64, the logits on disk.

    Of each batch the shortest prompts are first. The model is in memory no longer than this lasts.
    """
    import torch

    from bakeout.models.network.devices import input_device
    from bakeout.models.network.generation import within_context
    from bakeout.models.reference.reference_model import Reference

    model = base.load()
    of_batches, stored = [], 0
    with (
        disk_errors(Path(tempfile.gettempdir())),
        tempfile.TemporaryFile() as file,
        Reference(model, plan) as reference,
    ):
        for prompts in batches:
            answers = []
            for rows, room in within_context(model, range(len(prompts)), prompts, new_tokens):
                padded = left_padded([prompts[row] for row in rows], runner.padding_token)
                ids, mask = (torch.from_numpy(array).to(input_device(model)) for array in padded)
                tokens, at_steps = reference.generate(ids, mask, room)
                for row, values in zip(tokens.tolist(), at_steps.float().cpu().numpy(), strict=True):
                    ends = [step for step, token in enumerate(row) if token in runner.end_tokens]
                    length = ends[0] + 1 if ends else len(row)
                    file.write(values[:length].tobytes())
                    answers.append((row[:length], stored))
                    stored += length
            of_batches.append(answers)
        file.flush()
        # Once: every mapping keeps a file descriptor.
        logits = np.memmap(file, np.float32, mode="r").reshape(stored, -1)
    return [[(tokens, logits[start : start + len(tokens)]) for tokens, start in answers] for answers in of_batches]


def _agreed(answer: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are alike before the first that is not."""
    alike = [token == other for token, other in zip(answer, expected, strict=False)]
    return alike.index(False) if False in alike else len(alike)
