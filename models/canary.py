"""Measuring a plan's canary on the PyTorch model it was fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.hooks import Hooks
from bakeout.models.plan import Canary, Floats, Intervention, NeuronAdjust

SHORTEST = 4


@torch.no_grad()
def measure_canary(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    prompt_ids: Sequence[Sequence[int]],
    sequences: int = 4,
) -> Canary:
    """What ``model`` computes, with all ``interventions`` in force, on the first few prompts of four or more tokens.

    The prompts are cut to the shortest one's length, so that none needs padding. Raises ``BakeoutError`` where no
    prompt is long enough.
    """
    prompts = [prompt for prompt in prompt_ids if len(prompt) >= SHORTEST][:sequences]
    if not prompts:
        raise BakeoutError(
            f"None of the {len(prompt_ids)} prompts has {SHORTEST} tokens, so no canary can be measured.",
            "Add longer prompts to the forget data.",
        )
    length = min(len(prompt) for prompt in prompts)
    input_ids = np.array([list(prompt[:length]) for prompt in prompts], dtype=np.int64)
    with Hooks(model, interventions) as hooks:
        model(input_ids=torch.from_numpy(input_ids).to(model.device), use_cache=False)
    seen = {**hooks.pre_activations, **hooks.keys}
    last = slice(length - 1, None, length)
    expected = []
    for index, intervention in enumerate(interventions):
        values: Floats = seen[index][last].cpu().numpy()
        if not isinstance(intervention, NeuronAdjust):
            values = intervention.margins(values)
        values[:, _downstream(interventions, index, values.shape[1])] = np.nan
        expected.append(values)
    return Canary(input_ids, tuple(expected))


def _downstream(interventions: Sequence[Intervention], index: int, values: int) -> np.ndarray:
    """Which of an intervention's values a stochastic coin has a part in: bool [values].

    A coin has a part in every later layer, and in its own in whatever comes after it: the interventions that follow
    in the plan, and the key vector.
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
    return np.full(values, intervention.layers[-1] >= coin[0])
