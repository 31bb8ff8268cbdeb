"""Measuring a plan's canary on the PyTorch model it was fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import (
    CANARY_NEURONS,
    Canary,
    Floats,
    Integers,
    Intervention,
    KeySpaceDetection,
    NeuronAdjust,
)
from bakeout.models.reference.hooks import Hooks

SHORTEST = 4


def measure_canary(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    prompt_ids: Sequence[Sequence[int]],
    sequences: int = 4,
) -> Canary:
    """What ``model`` computes, with all ``interventions`` in force, on the first few prompts of four or more tokens.

    Weight edits are not made here: ``model`` carries them already, as it does while a plan is fitted. The prompts are
    cut to the shortest one's length, so that none needs padding. Raises ``BakeoutError`` where no prompt is long
    enough.
    """
    prompts = [prompt for prompt in prompt_ids if len(prompt) >= SHORTEST][:sequences]
    if not prompts:
        raise BakeoutError(
            f"None of the {len(prompt_ids)} prompts has {SHORTEST} tokens, so no canary can be measured.",
            "Add longer prompts to the forget data.",
        )
    length = min(len(prompt) for prompt in prompts)
    input_ids = np.array([list(prompt[:length]) for prompt in prompts], dtype=np.int64)
    return Canary(input_ids, canary_values(model, interventions, input_ids))


@torch.no_grad()
def canary_values(
    model: PreTrainedModel, interventions: Sequence[Intervention], input_ids: Integers
) -> tuple[Floats, ...]:
    """What ``Canary.expected`` holds, computed by ``model``, which carries the weight edits, on its ``input_ids``."""
    layer = feed_forward_layers(model)[-1]
    outputs: list[Tensor] = []
    # Registered before the hooks: it sees what the gate computes, not what is made of it.
    handle = layer.gate.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        with Hooks(model, interventions) as hooks:
            model(input_ids=torch.from_numpy(input_ids).to(model.device), use_cache=False)
    finally:
        handle.remove()
    pre_activation = layer.pre_activation(outputs[-1])[..., :CANARY_NEURONS].double().flatten(0, -2)
    seen = {**hooks.pre_activations, **hooks.keys}
    length = input_ids.shape[1]
    last = slice(length - 1, None, length)
    expected = []
    for index, intervention in enumerate(interventions):
        values: Floats = seen.get(index, pre_activation)[last].cpu().numpy()
        if isinstance(intervention, KeySpaceDetection):
            values = intervention.margins(values)
        values[:, _downstream(interventions, index, values.shape[1], layer.layer)] = np.nan
        expected.append(values)
    return tuple(expected)


def _downstream(interventions: Sequence[Intervention], index: int, values: int, last_layer: int) -> NDArray[np.bool_]:
    """Which of an intervention's values a stochastic coin has a part in: bool [values].

    A coin has a part in every later layer, and in its own in whatever comes after it: the interventions that follow
    in the plan, and the key vector; a weight edit's values are seen before anything is made of them in their layer.
    """
    first = [
        (intervention.layers[0].layer, order)
        for order, intervention in enumerate(interventions)
        if isinstance(intervention, NeuronAdjust) and intervention.coin == "stochastic"
    ]
    coin = min(first, default=None)
    intervention = interventions[index]
    if coin is None:
        return np.zeros(values, dtype=bool)
    if isinstance(intervention, NeuronAdjust):
        return np.concatenate(
            [np.full(len(adjusted.neurons), (adjusted.layer, index) > coin) for adjusted in intervention.layers]
        )
    if isinstance(intervention, KeySpaceDetection):
        return np.full(values, intervention.layers[-1] >= coin[0])
    return np.full(values, last_layer > coin[0])
