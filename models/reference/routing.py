"""Routing stability: whether interventions leave tokens with the experts that the base model sends them to.

A mixture's knowledge can also be kept from a token by sending it elsewhere, which no other figure of forgetting shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.network.devices import input_device
from bakeout.models.network.mixtures.routers import Router, routers
from bakeout.models.network.probing import hooked
from bakeout.models.plan import Intervention, Plan
from bakeout.models.plan.routing_stability import RoutingStability
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.weight_edits import edited_weights

# Of each router: which experts every token is sent to, bool [tokens, experts].
Choices = list[Tensor]


def chosen_experts(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], interventions: Sequence[Intervention] = ()
) -> Choices:
    """The experts that every token is sent to, ``interventions`` in force; ``model`` carries the weight edits."""
    found = routers(model)
    seen: list[list[Tensor]] = [[] for _ in found]

    def keep(router: Router) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen[router.index].append(router.choice(output).cpu())

        return hook

    with torch.no_grad(), Hooks(model, interventions), hooked(_registered(found, keep)):
        for sequence in sequences:
            model(input_ids=torch.tensor([list(sequence)], device=input_device(model)), use_cache=False)
    return [torch.cat(parts) for parts in seen]


def compare_routing(before: Choices, after: Choices) -> RoutingStability:
    """The stability of the same tokens' routing."""
    same = [float((earlier == other).all(dim=1).double().mean()) for earlier, other in zip(before, after, strict=True)]
    return RoutingStability(sum(same) / len(same), len(before[0]), tuple(same))


def routing_stability(
    model: PreTrainedModel, plan: Plan, sequences: Sequence[Sequence[int]]
) -> RoutingStability | None:
    """The stability under a plan's interventions, weight edits included; ``model`` is the base. None if it is dense."""
    if not routers(model) or not sequences:
        return None
    before = chosen_experts(model, sequences)
    with edited_weights(model, plan.interventions):
        return compare_routing(before, chosen_experts(model, sequences, plan.interventions))


def _registered(found: Sequence[Router], keep: Callable[[Router], Any]) -> Iterator[Any]:
    for router in found:
        yield router.module.register_forward_hook(keep(router))
