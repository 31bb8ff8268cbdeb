"""Parity: a baked graph against the PyTorch reference, which computes by the papers' formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bakeout.export.console import Track
from bakeout.export.runtime import Runner
from bakeout.export.sampling import Logits
from bakeout.graph_passes.graph_file import graph_bytes, load_graph
from bakeout.graph_passes.neuron_adjust import name_prefix
from bakeout.graph_passes.observe import ObservePass
from bakeout.graph_passes.precision import Precision, stored_precision
from bakeout.models.checkpoint import load_model, weights_digest
from bakeout.models.plan import AdjustedLayer, Floats, NeuronAdjust, Plan
from bakeout.models.receipt import Receipt

NEW_TOKENS = 16
_BATCH = 16
_STANDARD_ERRORS = 4
# Neuron Adjust is discontinuous where both Gaussians are equally likely: a value within rounding of that point falls
# one way in float32 and the other in float64, and what follows in its text moves with it.
_TIES = 0.02


@dataclass(frozen=True)
class Tolerance:
    """What rounding explains. ``prompts``: the share whose greedy text must be the reference's to the token."""

    logits: float
    prompts: float
    values: float


# In half precision a near tie between two tokens falls either way, and at four bits many do.
_TOLERANCE: dict[Precision, Tolerance] = {
    "float32": Tolerance(logits=1e-3, prompts=1.0, values=1e-3),
    "float16": Tolerance(logits=0.25, prompts=0.95, values=1e-2),
    "quantised": Tolerance(logits=8.0, prompts=0.5, values=1e-2),
}


def check_parity(
    graph_file: Path, plan: Plan, base: Path, prompts: Sequence[Sequence[int]], track: Track
) -> tuple[bool, str]:
    """Whether the graph says what the hooked base model says, and in a few words how near it comes.

    Greedy text of up to 16 tokens after each prompt, and the logits behind it as far as the texts agree.
    """
    if weights_digest(base) != plan.model.digest:
        return False, f"{base} is not the model that the plan was fitted on: its weights' digest differs"
    tolerance = _TOLERANCE[stored_precision(load_graph(graph_file))]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    batches = [[prompts[row] for row in order[start : start + _BATCH]] for start in range(0, len(order), _BATCH)]
    runner = Runner(graph_file)
    reference = _Reference(plan, base, runner)
    adjusts = any(isinstance(one, NeuronAdjust) for one in plan.interventions)
    ties = math.ceil(_TIES * len(prompts)) if adjusts else 0
    equal, differences = 0, []
    for batch in track(batches, "comparing with the PyTorch reference", len(batches)):
        baked = runner.generate_with_logits(batch, NEW_TOKENS, batch_size=_BATCH)
        for (said, logits), (expected, expected_logits) in zip(baked, reference.generate(batch), strict=True):
            agreed = _agreed(said, expected)
            equal += said == expected
            steps = min(agreed + 1, len(said), len(expected))
            differences.append(float(np.abs(logits[:steps] - expected_logits[:steps]).max()))
    beyond = sum(difference > tolerance.logits for difference in differences)
    ok = equal >= int(tolerance.prompts * len(prompts)) - ties and beyond <= ties
    return ok, (
        f"{equal} of {len(prompts)} prompts answered alike to the token, largest logit difference "
        f"{max(differences):.1e}, in {beyond} prompts above {tolerance.logits:g} (at most {ties})"
    )


def check_coin(
    graph_file: Path, plan: Plan, receipts: Sequence[Receipt], prompts: Sequence[Sequence[int]], track: Track
) -> tuple[bool, str]:
    """What can be held of a stochastic coin, whose draws no reference can repeat.

    Every selected value is either left alone or shifted as the formula says, none is shifted where the retain set is
    likelier, and as many are shifted as the probabilities add up to, within four standard errors.
    """
    model = load_graph(graph_file)
    tolerance = _TOLERANCE[stored_precision(model)].values
    tensors = {
        (receipt.intervention, receipt.layer): (
            receipt.tensor,
            f"{name_prefix(receipt.intervention, receipt.layer)}.adjusted",
        )
        for receipt in receipts
        if receipt.kind == NeuronAdjust.kind
    }
    ObservePass([name for pair in tensors.values() for name in pair])(model)
    runner = Runner(graph_file, graph=graph_bytes(model))
    values = shifted = 0
    expected = variance = 0.0
    for prompt in track(prompts, "counting the coin's draws", len(prompts)):
        ids = np.array([prompt], dtype=np.int64)
        seen = runner.step(ids, np.ones_like(ids)).others
        for index, intervention in enumerate(plan.interventions):
            if not isinstance(intervention, NeuronAdjust) or intervention.coin != "stochastic":
                continue
            for layer in intervention.layers:
                before, after = (
                    seen[name].reshape(-1, plan.model.width)[:, layer.neurons].astype(np.float64)
                    for name in tensors[index, layer.layer]
                )
                probability, moved = _formula(layer, before)
                scale = tolerance * (1 + np.abs(before) + np.abs(moved))
                is_moved = np.abs(after - moved) < np.abs(after - before)
                if (np.where(is_moved, np.abs(after - moved), np.abs(after - before)) > scale).any():
                    return False, f"layer {layer.layer}: a value is neither left alone nor shifted as the formula says"
                if (is_moved & (probability == 0) & (np.abs(after - before) > scale)).any():
                    return False, f"layer {layer.layer}: a value is shifted although the retain set is likelier"
                values += int((probability > 0).sum())
                shifted += int((is_moved & (probability > 0)).sum())
                expected += float(probability.sum())
                variance += float((probability * (1 - probability)).sum())
    ok = abs(shifted - expected) <= _STANDARD_ERRORS * math.sqrt(variance) + 1
    return ok, (
        f"stochastic coin, not comparable token for token; instead: {shifted:,} of {values:,} values that look like "
        f"the forget set's shifted as the formula says, {expected:,.0f} expected"
    )


class _Reference:
    """The hooked base model, in float32 with the interventions in float64."""

    def __init__(self, plan: Plan, base: Path, runner: Runner) -> None:
        self._plan = plan
        self._model = load_model(base)
        self._runner = runner

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], Logits]]:
        """As ``Runner.generate_with_logits``."""
        import torch

        from bakeout.models.reference import Reference

        width = max(len(prompt) for prompt in prompts)
        padding = self._runner.padding_token
        ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with Reference(self._model, self._plan) as reference:
            tokens, logits = reference.generate(ids, mask, NEW_TOKENS)
        found = []
        for row, step_logits in zip(tokens.tolist(), logits.float().numpy(), strict=True):
            ends = [step for step, token in enumerate(row) if token in self._runner.end_tokens]
            length = ends[0] + 1 if ends else len(row)
            found.append((row[:length], step_logits[:length]))
        return found


def _agreed(said: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are alike before the first that is not."""
    alike = [one == other for one, other in zip(said, expected, strict=False)]
    return alike.index(False) if False in alike else len(alike)


def _formula(layer: AdjustedLayer, values: Floats) -> tuple[Floats, Floats]:
    """(probability of a shift, the shifted value), by the paper's densities: float64 [tokens, n] each."""

    def log_density(mean: Floats, deviation: Floats) -> Floats:
        return -((values - mean) ** 2) / (2 * deviation**2) - np.log(deviation * math.sqrt(2 * math.pi))

    forget = log_density(layer.forget_mean, layer.forget_deviation)
    retain = log_density(layer.retain_mean, layer.retain_deviation)
    probability = np.where(forget > retain, 1 / (1 + np.exp(np.minimum(retain - forget, 0))), 0.0)
    shifted = layer.retain_mean - layer.retain_deviation * (values - layer.forget_mean) / layer.forget_deviation
    return probability, shifted
