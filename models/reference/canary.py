"""Measuring a plan's canary on the PyTorch model it was fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import CANARY_NEURONS, Canary, Floats, Integers, Intervention
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
    last_layer = layer.pre_activation(outputs[-1])[..., :CANARY_NEURONS].double().flatten(0, -2)
    seen = hooks.seen
    length = input_ids.shape[1]
    last = slice(length - 1, None, length)
    coins = [(one.draws_at, place) for place, one in enumerate(interventions) if one.draws_at is not None]
    expected = []
    for place, intervention in enumerate(interventions):
        values = intervention.canary_values(seen.get(place, last_layer)[last].cpu().numpy())
        is_behind = bool(coins) and intervention.is_behind(min(coins), place, layer.layer)
        expected.append(np.where(is_behind, np.nan, values))
    return tuple(expected)
