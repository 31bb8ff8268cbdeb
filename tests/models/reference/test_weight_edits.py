"""Weight edits on torch models: in place, by the formula, and taken back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import AdjustedLayer, LowRankUpdate, NeuronAdjust, PlanError, WeightUpdate
from bakeout.models.plan.canary_check import compare_canary
from bakeout.models.reference.canary import measure_canary
from bakeout.models.reference.reference_model import Reference
from bakeout.models.reference.weight_edits import apply_weight_edit, edited_weights, planned_weights, weight_of

from tests.tiny_models import FAMILIES, tiny_model, tiny_width
from tests.weight_plans import PROMPTS, low_rank_update, plan_of, zero_columns

IDS = torch.tensor([[2, 30, 40, 50], [7, 8, 9, 10]])


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def _same(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_is_what_its_linear_multiplies_by(family: str) -> None:
    layer = feed_forward_layers(tiny_model(family, layers=2))[1]
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    keys = torch.randn(3, tiny_width(family), generator=torch.Generator().manual_seed(1))

    def linear(module: torch.nn.Module, data: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = module(data) - module(torch.zeros_like(data))
        return product

    with torch.no_grad():
        torch.testing.assert_close(layer.pre_activation(linear(layer.gate, x)), x @ weight_of(layer, "gate").T)
        torch.testing.assert_close(linear(layer.down, keys), keys @ weight_of(layer, "down").T)
        if layer.layout == "ungated":
            with pytest.raises(BakeoutError, match="ungated"):
                weight_of(layer, "up")
        else:
            outputs = linear(layer.up, x) if layer.up is not None else linear(layer.gate, x)[:, 96:]
            torch.testing.assert_close(outputs, x @ weight_of(layer, "up").T)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edits_are_made_in_place_and_taken_back(family: str, dtype: str) -> None:
    model = tiny_model(family, layers=3, dtype=dtype)
    before = _state(model)
    update, zeroed = low_rank_update(model), zero_columns(2)
    layers = feed_forward_layers(model)
    expected = [
        (weight.double() + torch.from_numpy(one.left).double() @ _double(one.right)).float().to(model.dtype)
        for one, weight in zip(update.updates, planned_weights(model, update.updates), strict=True)
    ]
    with edited_weights(model, [update, zeroed]):
        for one, weight in zip(update.updates, expected, strict=True):
            if (one.layer, one.role) != (2, "down"):
                assert torch.equal(planned_weights(model, [one])[0], weight)
        assert (weight_of(layers[2], "down")[:, [1, 5, 8, 90]] == 0).all()
        assert (weight_of(layers[2], "down")[:, [0, 2]] != 0).any()
    assert _same(model, before)


def _double(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).double()


def test_an_error_takes_the_edits_back_too() -> None:
    model = tiny_model("llama", layers=3)
    before = _state(model)
    with pytest.raises(RuntimeError, match="inside"), edited_weights(model, [low_rank_update(model)]):
        raise RuntimeError("inside")
    assert _same(model, before)
    wrong = LowRankUpdate("x", (WeightUpdate(1, "up", np.ones((5, 1), np.float32), np.ones((1, 32), np.float32)),))
    with pytest.raises(PlanError, match="shape"), edited_weights(model, [low_rank_update(model), wrong]):
        pass
    assert _same(model, before)


def test_an_edit_that_does_not_fit_changes_nothing() -> None:
    model = tiny_model("llama", layers=2)
    before = _state(model)
    fits = WeightUpdate(0, "down", np.ones((32, 1), np.float32), np.ones((1, 96), np.float32))
    for edit in (
        LowRankUpdate("x", (fits, WeightUpdate(2, "down", fits.left, fits.right))),
        LowRankUpdate("x", (fits, WeightUpdate(1, "gate", fits.left, fits.right))),
        zero_columns(0, 2),
        zero_columns(0, columns=[3, 96]),
    ):
        with pytest.raises(PlanError):
            apply_weight_edit(model, edit)
        assert _same(model, before)


def test_weights_are_rounded_to_the_type_that_they_are_stored_in() -> None:
    half = tiny_model("llama", layers=3, dtype="bfloat16")
    wide = tiny_model("llama", layers=3, dtype="bfloat16").float()
    edits = [low_rank_update(wide), low_rank_update(wide, seed=1)]
    with edited_weights(half, edits), edited_weights(wide, edits, stored_as=torch.bfloat16):
        for one, other in zip(half.parameters(), wide.parameters(), strict=True):
            assert torch.equal(one.float(), other)


def test_the_reference_carries_the_edits_while_it_is_entered() -> None:
    model = tiny_model("llama", layers=3)
    before = _state(model)
    plan = plan_of(model, "ab" * 32, low_rank_update(model), zero_columns(1))
    mask = torch.ones_like(IDS)
    with Reference(model, plan) as reference:
        logits = reference.step(IDS, mask, reference.new_cache(2))
    assert _same(model, before)
    with torch.no_grad():
        base = model(IDS).logits
        for edit in plan.interventions:
            apply_weight_edit(model, edit)
        assert torch.equal(model(IDS).logits, logits)
    assert not torch.allclose(base, logits, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
def test_the_canary_is_the_last_layers_pre_activations_with_the_edits_in(family: str) -> None:
    model = tiny_model(family, layers=3)
    edit = low_rank_update(model, layers=[0])
    plan = plan_of(model, "ab" * 32, edit)
    (expected,) = plan.canary.expected
    assert expected.shape == (4, 64)
    layer = feed_forward_layers(model)[-1]
    seen = []
    handle = layer.gate.register_forward_hook(
        lambda module, arguments, output: seen.append(layer.pre_activation(output).reshape(4, -1, 96)[:, -1, :64])
    )
    with edited_weights(model, [edit]), torch.no_grad():
        model(torch.from_numpy(plan.canary.input_ids))
    handle.remove()
    np.testing.assert_array_equal(expected, seen[0].double().numpy())
    (base,) = measure_canary(model, [edit], PROMPTS).expected
    assert compare_canary(expected, expected, edit, 1e-9).ok
    assert not compare_canary(expected, base, edit, 0.1).ok


def test_the_canary_of_an_edit_is_seen_before_a_coin_of_its_layer_and_not_after_one() -> None:
    model = tiny_model("llama", layers=3)
    ones = np.ones(2)

    def adjust(layer: int) -> NeuronAdjust:
        return NeuronAdjust("stochastic", (AdjustedLayer(layer, np.array([1, 5]), ones, ones, 0 * ones, ones),))

    edit = low_rank_update(model, layers=[0])
    for layer, unknown in ((1, True), (2, False)):
        _, values = plan_of(model, "ab" * 32, adjust(layer), edit).canary.expected
        assert np.isnan(values).all() == unknown
        assert np.isnan(values).any() == unknown
