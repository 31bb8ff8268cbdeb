"""Plans for tiny random models, and baked graphs held against the PyTorch reference, which knows nothing of baking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from transformers import PreTrainedModel

from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.padding import left_padded
from bakeout.models.data.rows import Record
from bakeout.models.network.families import feed_forward_layers, identity
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.mixtures.expert_probing import probe_mixture
from bakeout.models.plan import (
    AdjustedLayer,
    Coin,
    Cubes,
    Floats,
    Integers,
    Intervention,
    Keys,
    KeySpaceDetection,
    NeuronAdjust,
    Plan,
    Positions,
)
from bakeout.models.reference.canary import measure_canary
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.reference_model import Reference

from tests.fitted_regions import fitted_regions
from tests.tiny_models import END_OF_TEXT_ID

STEPS = 8
LARGEST_DIFFERENCE = 1e-3
# Log-odds nearer to 0 than this can have either sign in float32, and a coin's shift is not continuous there.
TIE = 1e-5
REFUSAL = np.array([40, 41, 40, 42, END_OF_TEXT_ID])

Prompts = Sequence[Sequence[int]]
Logits = NDArray[np.float32]
Ties = NDArray[np.bool_]


@dataclass(frozen=True)
class Parity:
    """How a baked graph compares with the reference and with the unbaked graph, over some prompts.

    ``prompts``: how many; ``ties``: the share of steps that come after one at which rounding may have decided;
    ``alike``: prompts that are at all other steps answered as the reference does, to the token and with logits within
    the tolerance; ``difference``: the largest one of logits; ``changed``: prompts answered otherwise than by the
    unbaked graph; ``refused``: prompts answered by the whole refusal.
    """

    prompts: int
    ties: float
    alike: int
    difference: float
    changed: int
    refused: int

    @property
    def holds(self) -> bool:
        """Token for token the reference's, and different from the unbaked model on at least half of the prompts."""
        return self.alike == self.prompts and self.ties < 0.1 and self.changed >= 0.5 * self.prompts


def neuron_adjust(
    model: PreTrainedModel, coin: Coin, prompts: Prompts, *, seed: int = 0, decisive: bool = False
) -> NeuronAdjust:
    """A third of the neurons of two layers, at home in what they see; the retain set lies two deviations below.

    ``decisive``, for what does not compute in float32: no value comes near the point where the coin turns. Every other
    neuron is always shifted, the others never are.
    """
    layers = feed_forward_layers(model)
    random = np.random.default_rng(seed)
    adjusted = []
    for number in (0, min(2, len(layers) - 1)):
        values = _pre_activations(model, number, prompts)
        neurons = np.sort(random.choice(layers[number].width, layers[number].width // 3, replace=False))
        mean, deviation = values.mean(axis=0)[neurons], values.std(axis=0, ddof=1)[neurons]
        forget, retain = mean, mean - 2 * deviation
        if decisive:
            is_shifted = np.arange(len(neurons)) % 2 == 0
            forget = np.where(is_shifted, mean, mean - 30 * deviation)
            retain = np.where(is_shifted, mean - 30 * deviation, mean)
        adjusted.append(AdjustedLayer(number, neurons, forget, deviation, retain, 1.3 * deviation))
    return NeuronAdjust(coin, tuple(adjusted))


def neuron_adjust_of_experts(model: PreTrainedModel, coin: Coin, prompts: Prompts, *, seed: int = 0) -> NeuronAdjust:
    """As ``neuron_adjust``, of every second FFL of a mixture, those that are sent to experts among them."""
    records = [Record("", "", list(prompt[:1]), list(prompt[1:])) for prompt in prompts]
    random = np.random.default_rng(seed)
    adjusted = []
    for number, moments in list(enumerate(probe_mixture(model, records, scope="all").layers))[::2]:
        if moments.count >= 2:
            width = len(moments.mean)
            neurons = np.sort(random.choice(width, width // 3, replace=False))
            mean, deviation = moments.mean[neurons], moments.deviation[neurons]
            adjusted.append(AdjustedLayer(number, neurons, mean, deviation, mean - 2 * deviation, 1.3 * deviation))
    return NeuronAdjust(coin, tuple(adjusted))


def key_space_detection(
    model: PreTrainedModel,
    layers: tuple[int, ...],
    positions: Positions,
    prompts: Prompts,
    earlier: Sequence[Intervention] = (),
    region: str = "cube",
    keys: Keys = "key_vector",
    query_start: Sequence[int] = (),
    query_end: Sequence[int] = (),
) -> KeySpaceDetection:
    """Two regions around the last (or mean) keys of two halves of the prompts, more than half of the prompts inside.

    A half-space separates them from the prompts' first tokens.
    """
    sites = key_sites(model, keys)
    shape = (2, sum(sites[layer].width for layer in layers))
    blank = KeySpaceDetection(
        layers,
        Cubes(np.zeros(shape), np.ones(shape)),
        np.ones(2),
        ("a", "b"),
        REFUSAL,
        positions,
        query_start=tuple(query_start),
        query_end=tuple(query_end),
        keys=keys,
    )
    seen = []
    with torch.no_grad(), Hooks(model, [*earlier, blank]) as hooks:
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]))
            seen.append(hooks.seen[len(earlier)].numpy())
    decisive = [
        key[blank.decisive(prompt)].mean(axis=0, keepdims=True) for key, prompt in zip(seen, prompts, strict=True)
    ]
    queries = np.concatenate(decisive)
    regions = fitted_regions(region, [queries[::2], queries[1::2]], np.stack([key[0] for key in seen]))
    check = replace(blank, regions=regions)
    # What decides over a prompt: its last token's margin, or with `every` the smallest.
    tested = seen if positions == "every" else decisive
    smallest = np.sort([check.margins(key).min() for key in tested])
    half = len(smallest) // 2
    gap = int(np.argmax(np.diff(smallest[half : half + half // 2]))) + half
    alpha = np.full(2, smallest[gap : gap + 2].mean())
    return replace(check, alpha=alpha)


def plan_of(model: PreTrainedModel, interventions: Sequence[Intervention], prompts: Prompts) -> Plan:
    """A plan for ``model``, with the canary of its own prompts."""
    return Plan(identity(model, "ab" * 32), tuple(interventions), measure_canary(model, interventions, prompts))


@cache
def model_of(checkpoint: Path) -> PreTrainedModel:
    """The checkpoint's model in float32, loaded once."""
    return load_model(checkpoint)


def unbaked(directory: Path, *, exact: bool = False) -> Runner:
    """A session of the directory's graph. ``exact``: dequantised weights are multiplied in float32, not in int8."""
    return _runner(directory, None, exact)


def baked(directory: Path, plan: Plan, *, inline: bool = False, early_exit: bool = True, exact: bool = False) -> Runner:
    """As ``unbaked``, with the plan in the graph."""
    graph = load_graph(directory / "model.onnx")
    apply_plan(graph, plan, inline=inline, early_exit=early_exit)
    return _runner(directory, graph_bytes(graph), exact)


def _runner(directory: Path, graph: bytes | None, exact: bool) -> Runner:
    runner = Runner(directory, threads=1, graph=graph)
    if exact:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        source = graph or directory / "model.onnx"
        runner.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return runner


def greedy(runner: Runner, ids: Integers, mask: Integers) -> tuple[Integers, Logits]:
    """Tokens [batch, steps] and the logits that they maximise; padding on the left."""
    past, tokens, chosen = None, [], []
    for _ in range(STEPS):
        step = runner.step(ids, mask, past)
        chosen.append(step.logits[:, -1])
        tokens.append(chosen[-1].argmax(axis=-1))
        past, ids = step.cache, tokens[-1][:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return np.stack(tokens, axis=1), np.stack(chosen, axis=1)


def greedy_reference(
    reference: Reference, plan: Plan, ids: Integers, mask: Integers, tolerance: float
) -> tuple[Integers, Logits, Ties]:
    """As ``greedy``, and which steps [batch, steps] come after what rounding may have decided: a coin, or which of two
    tokens has the larger logit. At a step of the latter kind the logits are still comparable, and counted so.
    """
    past, tokens, chosen, coins, choices = reference.new_cache(len(ids)), [], [], [], []
    for _ in range(STEPS):
        logits = reference.step(torch.from_numpy(ids), torch.from_numpy(mask), past).numpy()
        chosen.append(logits[:, -1])
        tokens.append(chosen[-1].argmax(axis=-1))
        second, first = np.sort(chosen[-1], axis=-1)[:, -2:].T
        choices.append(first - second <= 2 * tolerance)
        tie = np.zeros(ids.shape, dtype=bool)
        for index, values in reference.seen.items():
            intervention = plan.interventions[index]
            if isinstance(intervention, NeuronAdjust):
                tie |= _near_tie(intervention, values.numpy()).reshape(ids.shape)
        coins.append((tie & (mask[:, -ids.shape[1] :] == 1)).any(axis=1))
        ids = tokens[-1][:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    ties = np.logical_or.accumulate(np.stack(coins, axis=1) | np.stack(choices, axis=1), axis=1)
    return np.stack(tokens, axis=1), np.stack(chosen, axis=1), ties


def compare(
    model: PreTrainedModel,
    plan: Plan,
    base: Runner,
    runner: Runner,
    prompts: Prompts,
    tolerance: float = LARGEST_DIFFERENCE,
) -> Parity:
    """Greedy answers of ``runner`` beside the reference's on ``model`` and those of ``base``, the unbaked graph."""
    ids, mask = left_padded(prompts)
    with Reference(model, plan) as reference:
        tokens, logits, ties = greedy_reference(reference, plan, ids, mask, tolerance)
    baked_tokens, baked_logits = greedy(runner, ids, mask)
    base_tokens, _ = greedy(base, ids, mask)
    differences = np.abs(baked_logits - logits).max(axis=-1)
    agrees = (differences <= tolerance) & (baked_tokens == tokens)
    said = baked_tokens[:, : len(REFUSAL)]
    return Parity(
        prompts=len(prompts),
        ties=float(ties.mean()),
        alike=int((agrees | ties).all(axis=1).sum()),
        difference=float(differences[~ties].max()),
        changed=int((baked_tokens != base_tokens).any(axis=1).sum()),
        refused=int((said == REFUSAL).all(axis=1).sum()),
    )


def _pre_activations(model: PreTrainedModel, number: int, prompts: Prompts) -> Floats:
    """The pre-activations of one layer at every token of the prompts: float64 [tokens, F]."""
    layer = feed_forward_layers(model)[number]
    seen: list[torch.Tensor] = []
    handle = layer.gate.register_forward_hook(
        lambda module, arguments, output: seen.append(layer.pre_activation(output).flatten(0, -2).double())
    )
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]))
    handle.remove()
    return torch.cat(seen).numpy()


def _near_tie(intervention: NeuronAdjust, values: Floats) -> Ties:
    """Whether either density of a neuron [tokens, n] is the greater by less than rounding explains: bool [tokens]."""

    def log_density(of: str) -> Floats:
        mean, deviation = (
            np.concatenate([getattr(layer, f"{of}_{moment}") for layer in intervention.layers])
            for moment in ("mean", "deviation")
        )
        return np.asarray(norm.logpdf(values, mean, deviation))

    return np.asarray((np.abs(log_density("forget") - log_density("retain")) < TIE).any(axis=1))
