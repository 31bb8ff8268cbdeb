"""LoRA modules: in and out of a model without a trace, and their sum is what they did together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from bakeout.models.methods.lora_modules import Module, adapted, summed
from bakeout.models.network.families import all_widths, feed_forward_layers
from bakeout.models.plan import LowRankUpdate
from bakeout.models.reference.weight_edits import edited_weights, planned_weights

from tests.tiny_models import tiny_model

FAMILIES = ("llama", "phi3", "gpt2", "opt", "gpt_neox", "mixtral", "qwen2_moe", "gpt_oss", "llama4_text")
TOKENS = torch.tensor([[5, 9, 77, 30, 8]])


def _random_module(model: PreTrainedModel, rank: int, seed: int) -> Module:
    generator = torch.Generator().manual_seed(seed)
    with adapted(model, rank, seed, with_experts=True) as adapters:
        return {
            name: (0.1 * torch.randn(left.shape, generator=generator), right.detach().clone())
            for name, (left, right) in adapters.items()
        }


def _trace(model: PreTrainedModel) -> list[Any]:
    """All that an adapter could change."""
    return [
        [(name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone().numpy().tobytes()) for name, p in model.named_parameters()],
        [(len(module._forward_hooks), id(module._forward_hooks)) for module in model.modules()],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_of_modules_does_what_the_adapters_did(family: str) -> None:
    model = tiny_model(family, layers=2)
    module = _random_module(model, 3, 1)
    with adapted(model, 3, 1, with_experts=True) as adapters:
        for name, (left, right) in adapters.items():
            left.data.copy_(module[name][0])
            right.data.copy_(module[name][1])
        with torch.no_grad():
            expected = model(TOKENS).logits
    updates, residual = summed(model, [(1.0, module)])
    assert residual < 1e-6
    assert {update.layer for update in updates} == set(range(len(all_widths(model))))
    with torch.no_grad():
        before = model(TOKENS).logits
        with edited_weights(model, [LowRankUpdate("test", updates)]):
            torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_given_back_without_a_trace(family: str) -> None:
    model = tiny_model(family, layers=2)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before, generator = _trace(model), torch.get_rng_state()
    with adapted(model, 2, 0, with_experts=True):
        pass
    with pytest.raises(KeyboardInterrupt), adapted(model, 2, 0, with_experts=True):
        raise KeyboardInterrupt
    assert _trace(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_hooks_of_an_earlier_intervention_see_the_adapted_output() -> None:
    model = tiny_model("llama", layers=2)
    gate = feed_forward_layers(model)[0].gate
    seen: list[torch.Tensor] = []
    handle = gate.register_forward_hook(lambda module, arguments, output: seen.append(output))
    with torch.no_grad(), adapted(model, 2, 0) as adapters:
        model(TOKENS)
        adapters["model.layers.0.mlp.gate_proj"][0].data.fill_(1.0)
        model(TOKENS)
    assert len(seen) == 2
    assert not torch.allclose(seen[0], seen[1])
    handle.remove()
    with torch.no_grad():
        model(TOKENS)
    assert len(seen) == 2


@settings(max_examples=10)
@given(st.lists(st.floats(-2, 2).filter(lambda share: abs(share) > 0.01), min_size=1, max_size=4), st.integers(1, 20))
def test_sums_are_exact_and_no_larger_than_they_must_be(shares: list[float], rank: int) -> None:
    model = tiny_model("llama", layers=1)
    parts = [(share, _random_module(model, rank, index)) for index, share in enumerate(shares)]
    updates, residual = summed(model, parts)
    assert residual < 1e-6
    assert [(update.layer, update.role) for update in updates] == [(0, "down"), (0, "gate"), (0, "up")]
    for update in updates:
        name = f"model.layers.0.mlp.{update.role}_proj"
        whole = sum(share * module[name][0].double() @ module[name][1].double() for share, module in parts)
        assert isinstance(whole, torch.Tensor)
        product = torch.from_numpy(update.left).double() @ torch.from_numpy(update.right).double()
        torch.testing.assert_close(product, whole, rtol=1e-4, atol=1e-6)
        assert update.left.shape[1] <= min(rank * len(shares), *planned_weights(model, [update])[0].shape)


def test_a_module_and_its_negative_leave_nothing() -> None:
    model = tiny_model("llama", layers=1)
    module = _random_module(model, 2, 0)
    updates, residual = summed(model, [(1.0, module), (-1.0, module)])
    assert residual == 0.0 or all(abs(update.left @ update.right).max() < 1e-12 for update in updates)
