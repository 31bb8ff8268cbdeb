"""Baked graphs under ONNX Runtime against the PyTorch reference, which knows nothing of what was baked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from transformers import PreTrainedModel

from bakeout.export.runtime import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph_file import graph_bytes, load_graph
from bakeout.models.canary import measure_canary
from bakeout.models.checkpoint import load_model
from bakeout.models.families import feed_forward_layers, identity
from bakeout.models.hooks import Hooks
from bakeout.models.plan import (
    AdjustedLayer,
    Coin,
    Floats,
    Integers,
    Intervention,
    KeySpaceDetection,
    NeuronAdjust,
    Plan,
    Positions,
)
from bakeout.models.reference import Reference

from tests.conftest import CheckpointOf
from tests.tiny_models import END_OF_TEXT_ID, random_prompts

STEPS = 8
LARGEST_DIFFERENCE = 1e-3
# Log-odds nearer to 0 than this can have either sign in float32, and a coin's shift is not continuous there.
TIE = 1e-5
REFUSAL = np.array([40, 41, 40, 42, END_OF_TEXT_ID])
MIDDLE, LAST = (1,), (3,)
JOINT = (0, 2)
# Optimum's OPT graph counts positions from the mask itself, as the model does, so padding is for all.
FAMILIES = ("gemma", "gpt2", "gpt_neox", "llama", "opt", "phi3", "qwen2")
PROMPTS = random_prompts(24, seed=3, shortest=4, longest=9)

Logits = NDArray[np.float32]
Ties = NDArray[np.bool_]


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Integers, Integers]:
    width = max(map(len, prompts))
    ids = np.array([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _neuron_adjust(model: PreTrainedModel, coin: Coin, *, seed: int = 0) -> NeuronAdjust:
    """A third of the neurons of two layers, at home in what they see; the retain set lies two deviations below."""
    layers = feed_forward_layers(model)
    random = np.random.default_rng(seed)
    adjusted = []
    for number in (0, 2):
        values = _pre_activations(model, number)
        neurons = np.sort(random.choice(layers[number].width, layers[number].width // 3, replace=False))
        mean, deviation = values.mean(axis=0)[neurons], values.std(axis=0, ddof=1)[neurons]
        adjusted.append(AdjustedLayer(number, neurons, mean, deviation, mean - 2 * deviation, 1.3 * deviation))
    return NeuronAdjust(coin, tuple(adjusted))


def _pre_activations(model: PreTrainedModel, number: int) -> Floats:
    """The pre-activations of one layer at every token of the prompts: float64 [tokens, F]."""
    layer = feed_forward_layers(model)[number]
    seen: list[torch.Tensor] = []
    handle = layer.gate.register_forward_hook(
        lambda module, arguments, output: seen.append(layer.pre_activation(output).flatten(0, -2).double())
    )
    with torch.no_grad():
        for prompt in PROMPTS:
            model(input_ids=torch.tensor([prompt]))
    handle.remove()
    return torch.cat(seen).numpy()


def _key_space_detection(
    model: PreTrainedModel, layers: tuple[int, ...], positions: Positions, earlier: Sequence[Intervention] = ()
) -> KeySpaceDetection:
    """Two cubes around the last tokens of two halves of the prompts, more than half of the prompts inside."""
    width = feed_forward_layers(model)[0].width
    shape = (2, len(layers) * width)
    blank = KeySpaceDetection(layers, np.zeros(shape), np.ones(shape), np.ones(2), ("a", "b"), REFUSAL, positions)
    keys = []
    with torch.no_grad(), Hooks(model, [*earlier, blank]) as hooks:
        for prompt in PROMPTS:
            model(input_ids=torch.tensor([prompt]))
            keys.append(hooks.keys[len(earlier)].numpy())
    queries = np.stack([key[-1] for key in keys])
    halves = queries[::2], queries[1::2]
    cubes = KeySpaceDetection(
        layers,
        np.stack([half.mean(axis=0) for half in halves]),
        # Of a dead ReLU neuron the deviation is 0.
        np.maximum([half.std(axis=0, ddof=1) for half in halves], 0.05),
        np.ones(2),
        ("a", "b"),
        REFUSAL,
        positions,
    )
    # What decides over a prompt: its last token's margin, or with `every` the smallest.
    tested = [key if positions == "every" else key[-1:] for key in keys]
    smallest = np.sort([cubes.margins(key).min() for key in tested])
    half = len(smallest) // 2
    gap = int(np.argmax(np.diff(smallest[half : half + half // 2]))) + half
    alpha = np.full(2, smallest[gap : gap + 2].mean())
    return KeySpaceDetection(layers, cubes.centre, cubes.deviation, alpha, cubes.skills, REFUSAL, positions)


def _plan(model: PreTrainedModel, interventions: Sequence[Intervention]) -> Plan:
    return Plan(identity(model, "ab" * 32), tuple(interventions), measure_canary(model, interventions, PROMPTS))


@cache
def _model(checkpoint: Path) -> PreTrainedModel:
    return load_model(checkpoint)


def _baked(directory: Path, plan: Plan, *, inline: bool = False, early_exit: bool = True) -> Runner:
    graph = load_graph(directory / "model.onnx")
    apply_plan(graph, plan, inline=inline, early_exit=early_exit)
    return Runner(directory, threads=1, graph=graph_bytes(graph))


def _greedy(runner: Runner, ids: Integers, mask: Integers) -> tuple[Integers, Logits]:
    """Tokens [batch, steps] and the logits that they maximise; padding on the left."""
    past, tokens, chosen = None, [], []
    for _ in range(STEPS):
        step = runner.step(ids, mask, past)
        chosen.append(step.logits[:, -1])
        tokens.append(chosen[-1].argmax(axis=-1))
        past, ids = step.cache, tokens[-1][:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return np.stack(tokens, axis=1), np.stack(chosen, axis=1)


def _greedy_reference(reference: Reference, plan: Plan, ids: Integers, mask: Integers) -> tuple[Integers, Logits, Ties]:
    """As ``_greedy``, and which steps [batch, steps] come after a coin that rounding may have tossed."""
    past, tokens, chosen, ties = reference.new_cache(len(ids)), [], [], []
    for _ in range(STEPS):
        logits = reference.step(torch.from_numpy(ids), torch.from_numpy(mask), past).numpy()
        chosen.append(logits[:, -1])
        tokens.append(chosen[-1].argmax(axis=-1))
        tie = np.zeros(ids.shape, dtype=bool)
        for index, values in reference.pre_activations.items():
            intervention = plan.interventions[index]
            assert isinstance(intervention, NeuronAdjust)
            tie |= _near_tie(intervention, values.numpy()).reshape(ids.shape)
        ties.append((tie & (mask[:, -ids.shape[1] :] == 1)).any(axis=1))
        ids = tokens[-1][:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return np.stack(tokens, axis=1), np.stack(chosen, axis=1), np.logical_or.accumulate(np.stack(ties, axis=1), axis=1)


def _near_tie(intervention: NeuronAdjust, values: Floats) -> Ties:
    """Whether either density of a neuron [tokens, n] is the greater by less than rounding explains: bool [tokens]."""

    def log_density(of: str) -> Floats:
        mean, deviation = (
            np.concatenate([getattr(layer, f"{of}_{moment}") for layer in intervention.layers])
            for moment in ("mean", "deviation")
        )
        density: Floats = norm.logpdf(values, mean, deviation)
        return density

    return (np.abs(log_density("forget") - log_density("retain")) < TIE).any(axis=1)


def _require_parity(checkpoint: Path, directory: Path, plan: Plan, runner: Runner) -> None:
    ids, mask = _padded(PROMPTS)
    with Reference(_model(checkpoint), plan) as reference:
        tokens, logits, ties = _greedy_reference(reference, plan, ids, mask)
    assert ties.mean() < 0.1
    baked_tokens, baked_logits = _greedy(runner, ids, mask)
    assert np.abs(baked_logits - logits)[~ties].max() <= LARGEST_DIFFERENCE
    assert baked_tokens[~ties].tolist() == tokens[~ties].tolist()
    base_tokens, _ = _greedy(Runner(directory, threads=1), ids, mask)
    changed = (baked_tokens != base_tokens).any(axis=1)
    assert changed.mean() >= 0.5
    if any(isinstance(intervention, KeySpaceDetection) for intervention in plan.interventions):
        refused = (baked_tokens[:, : len(REFUSAL)] == REFUSAL).all(axis=1)
        assert 0 < refused.sum() < len(refused)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inline", [False, True], ids=["function", "inline"])
@pytest.mark.parametrize("coin", ["threshold", "expected"])
def test_neuron_adjust(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, coin: Coin, inline: bool
) -> None:
    model = _model(checkpoint_of(family))
    plan = _plan(model, [_neuron_adjust(model, coin)])
    runner = _baked(onnx_of(family), plan, inline=inline)
    _require_parity(checkpoint_of(family), onnx_of(family), plan, runner)


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("layers", [MIDDLE, LAST, JOINT], ids=["middle", "last", "joint"])
@pytest.mark.parametrize("positions", ["query", "step", "every"])
def test_key_space_detection(
    llama_checkpoint: Path, llama_onnx: Path, positions: Positions, layers: tuple[int, ...], early_exit: bool
) -> None:
    model = _model(llama_checkpoint)
    plan = _plan(model, [_key_space_detection(model, layers, positions)])
    runner = _baked(llama_onnx, plan, early_exit=early_exit)
    _require_parity(llama_checkpoint, llama_onnx, plan, runner)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layers", "positions"), [(MIDDLE, "query"), (LAST, "every")])
def test_both_together(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, layers: tuple[int, ...], positions: Positions
) -> None:
    model = _model(checkpoint_of(family))
    adjust = _neuron_adjust(model, "expected")
    # In the other order in the plan: all are in force at once.
    plan = _plan(model, [_key_space_detection(model, layers, positions, [adjust]), adjust])
    _require_parity(checkpoint_of(family), onnx_of(family), plan, _baked(onnx_of(family), plan))


def test_two_adjustments_of_the_same_layers(llama_checkpoint: Path, llama_onnx: Path) -> None:
    model = _model(llama_checkpoint)
    plan = _plan(model, [_neuron_adjust(model, "threshold"), _neuron_adjust(model, "expected", seed=1)])
    _require_parity(llama_checkpoint, llama_onnx, plan, _baked(llama_onnx, plan))


@dataclass(frozen=True)
class _Run:
    """One run of a conversation script: new tokens and their mask, both int64 [batch, W]."""

    ids: Integers
    mask: Integers


def _script(seed: int, batch: int) -> list[_Run]:
    """Prompts, then turns of any width that continue the refusal or do not, with padding on either side."""
    random = np.random.default_rng(seed)
    prompts = [PROMPTS[index] for index in random.choice(len(PROMPTS), batch, replace=False)]
    runs = [_padded_run(prompts, max(map(len, prompts)), random)]
    for width in (1, 1, 4, random.integers(2, 6), 1, 3):
        turns = []
        for _ in range(batch):
            length = random.integers(1, width + 1) if random.random() < 0.5 else width
            start = random.integers(0, len(REFUSAL))
            continued = np.roll(np.tile(REFUSAL, 2), -start)[:length]
            turns.append(continued if random.random() < 0.6 else random.integers(2, 258, length))
        runs.append(_padded_run(turns, width, random))
    return runs


def _padded_run(rows: Sequence[Sequence[int] | Integers], width: int, random: np.random.Generator) -> _Run:
    run = _Run(np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64))
    for row, tokens in enumerate(rows):
        blank = width - len(tokens)
        real = slice(blank, None) if random.random() < 0.5 else slice(None, width - blank)
        run.ids[row, real] = tokens
        run.mask[row, real] = 1
    return run


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("layers", [MIDDLE, LAST], ids=["middle", "last"])
@pytest.mark.parametrize("positions", ["query", "step", "every"])
def test_windows_of_a_conversation(
    llama_checkpoint: Path, llama_onnx: Path, positions: Positions, layers: tuple[int, ...], early_exit: bool
) -> None:
    model = _model(llama_checkpoint)
    plan = _plan(model, [_key_space_detection(model, layers, positions)])
    runner = _baked(llama_onnx, plan, early_exit=early_exit)
    refused = []
    # One row at a time takes the early exit as soon as it is refused; among several it takes it seldom.
    for seed, batch in ((0, 6), (1, 6), (2, 2), (3, 1), (4, 1), (5, 1)):
        mask = np.zeros((batch, 0), dtype=np.int64)
        baked_past = None
        with Reference(model, plan) as reference:
            past = reference.new_cache(batch)
            for run in _script(seed, batch):
                mask = np.concatenate([mask, run.mask], axis=1)
                expected = reference.step(torch.from_numpy(run.ids), torch.from_numpy(mask), past).numpy()
                step = runner.step(run.ids, mask, baked_past)
                baked_past = step.cache
                real = run.mask.astype(bool)
                assert np.abs(step.logits - expected)[real].max() <= LARGEST_DIFFERENCE
                assert reference.said is not None
                refused.append((reference.said > 0)[real])
    share = np.concatenate(refused).mean()
    assert 0.1 < share < 0.95
