"""The share of tokens that a mixture sends to the same experts, interventions in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bakeout.models.network.mixtures.routers import routers
from bakeout.models.plan import PlanError
from bakeout.models.plan.kinds.zero_columns import ZeroColumns, ZeroedColumns
from bakeout.models.plan.routing_stability import RoutingStability
from bakeout.models.reference.routing import chosen_experts, compare_routing, routing_stability

from tests.baked_parity import key_space_detection, plan_of
from tests.tiny_models import MIXTURES, TORCH_MIXTURES, random_prompts, tiny_model

PROMPTS = random_prompts(8, seed=2, shortest=5, longest=9)


@pytest.mark.parametrize("family", ["deepseek_v3", "ernie4_5_moe", "jamba", "mixtral"])
def test_experts_run_on_the_tokens_that_are_sent_to_them(family: str) -> None:
    model = tiny_model(family)
    if family == "ernie4_5_moe":
        # It corrects the scores behind its router: every token is sent to the first expert.
        for name, bias in model.named_parameters():
            if name.endswith("correction_bias"):
                bias.data[0, 0] = 2.0
    experts = [model.get_submodule(f"{router.path}.experts") for router in routers(model)]
    ran = [[0] * len(list(of_router.children())) for of_router in experts]

    def count(rows: list[int], expert: int) -> Callable[[Any, Any], None]:
        def hook(_module: Any, arguments: Any) -> None:
            rows[expert] += len(arguments[0])

        return hook

    handles = [
        expert.register_forward_pre_hook(count(rows, number))
        for of_router, rows in zip(experts, ran, strict=True)
        for number, expert in enumerate(of_router.children())
    ]
    choices = chosen_experts(model, PROMPTS)
    for handle in handles:
        handle.remove()
    assert [of_router.sum(dim=0).tolist() for of_router in choices] == ran


@pytest.mark.parametrize("family", MIXTURES + TORCH_MIXTURES)
def test_every_token_goes_to_as_many_experts_as_the_model_chooses(family: str) -> None:
    model = tiny_model(family)
    choices = chosen_experts(model, PROMPTS)
    assert len(choices) == len(routers(model))
    for of_router in choices:
        assert of_router.shape[0] == sum(map(len, PROMPTS))
        assert (of_router.sum(dim=1) == 2).all()


def test_a_check_leaves_routing_as_it_is_and_pruned_weights_do_not() -> None:
    model = tiny_model("qwen2_moe")
    check = key_space_detection(model, (1,), "query", PROMPTS)
    unchanged = routing_stability(model, plan_of(model, [check], PROMPTS), PROMPTS)
    assert unchanged is not None
    assert unchanged.unchanged == 1.0

    pruned = ZeroColumns((ZeroedColumns(0, np.arange(90)),))
    before = [weight.clone() for weight in model.parameters()]
    stability = routing_stability(model, plan_of(model, [pruned], PROMPTS), PROMPTS)
    assert stability is not None
    # The first router lies before the pruned weight, the others behind it.
    assert stability.routers[0] == 1.0
    assert min(stability.routers[1:]) < 1.0
    assert stability.unchanged == pytest.approx(np.mean(stability.routers))
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_stability_counts_sets_of_experts() -> None:
    before = [torch.tensor([[True, True, False], [False, True, True]])]
    after = [torch.tensor([[True, True, False], [True, True, False]])]
    figures = compare_routing(before, after)
    assert (figures.unchanged, figures.tokens, figures.routers) == (0.5, 2, (0.5,))
    assert RoutingStability.from_json(figures.as_json()) == figures
    with pytest.raises(PlanError, match="routing"):
        RoutingStability(1.5, 2, (1.5,))


def test_a_dense_model_has_no_routing() -> None:
    model = tiny_model("llama")
    plan = plan_of(model, [key_space_detection(model, (1,), "query", PROMPTS)], PROMPTS)
    assert routing_stability(model, plan, PROMPTS) is None
    assert plan.routing_stability is None
