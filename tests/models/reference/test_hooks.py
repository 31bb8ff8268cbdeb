"""The interventions as hooks: the paper's formulas, on every family, gone when the context closes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from transformers import PreTrainedModel

from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import AdjustedLayer, Coin, Cubes, KeySpaceDetection, NeuronAdjust, PlanError
from bakeout.models.reference.hooks import Hooks

from tests.tiny_models import FAMILIES, tiny_model, tiny_width

IDS = torch.tensor([[5, 80, 200, 33], [9, 8, 70, 6]])
WIDTH = 96


def _adjusted(layer: int, *, seed: int = 0, count: int = 24) -> AdjustedLayer:
    random = np.random.default_rng([seed, layer])
    return AdjustedLayer(
        layer,
        np.sort(random.choice(WIDTH, count, replace=False)),
        forget_mean=random.normal(0.4, 0.3, count),
        forget_deviation=random.uniform(0.5, 1.0, count),
        retain_mean=random.normal(-0.4, 0.3, count),
        retain_deviation=random.uniform(0.5, 1.0, count),
    )


def _cubes(*layers: int, width: int = WIDTH) -> KeySpaceDetection:
    shape = (2, len(layers) * width)
    return KeySpaceDetection(
        layers, Cubes(np.zeros(shape), np.ones(shape)), np.array([1.0, 2.0]), ("math", "code"), np.array([7, 1])
    )


def _gate_output(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """The pre-activations [tokens, F] that the rest of the model sees, whatever has hooked it before."""
    seen: list[torch.Tensor] = []
    feed_forward = feed_forward_layers(model)[layer]
    handle = feed_forward.gate.register_forward_hook(
        lambda module, arguments, output: seen.append(feed_forward.pre_activation(output).flatten(0, -2))
    )
    with torch.no_grad():
        model(input_ids=IDS)
    handle.remove()
    return seen[0].double()


def _densities(layer: AdjustedLayer, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p_f, p_r and the shifted value, by SciPy."""
    p_f = norm.pdf(values, layer.forget_mean, layer.forget_deviation)
    p_r = norm.pdf(values, layer.retain_mean, layer.retain_deviation)
    z_f = (values - layer.forget_mean) / layer.forget_deviation
    return p_f, p_r, layer.retain_mean - layer.retain_deviation * z_f


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coin", ["threshold", "expected"])
def test_selected_neurons_are_adjusted_as_the_paper_writes_and_the_others_stay(family: str, coin: Coin) -> None:
    model = tiny_model(family, layers=2)
    layer = _adjusted(1)
    before = _gate_output(model, 1).numpy()
    with Hooks(model, [NeuronAdjust(coin, (layer,))]) as hooks:
        after = _gate_output(model, 1).numpy()
        seen = hooks.seen[0].numpy()
    selected = before[:, layer.neurons]
    np.testing.assert_array_equal(seen, selected)
    p_f, p_r, shifted = _densities(layer, selected)
    assert 0.1 < np.mean(p_f > p_r) < 0.9
    a = p_f / (p_r + p_f) if coin == "expected" else 1.0
    expected = before.copy()
    expected[:, layer.neurons] = np.where(p_f > p_r, selected + a * (shifted - selected), selected)
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_the_stochastic_coin_shifts_with_probability_a_and_repeats_from_its_seed() -> None:
    model = tiny_model("llama", layers=2)
    layer = _adjusted(0)
    values = _gate_output(model, 0).numpy()[:, layer.neurons]
    p_f, p_r, shifted = _densities(layer, values)
    intervention = NeuronAdjust("stochastic", (layer,), seed=5)
    with Hooks(model, [intervention]):
        draws = np.stack([_gate_output(model, 0).numpy()[:, layer.neurons] for _ in range(400)])
    with Hooks(model, [intervention]):
        np.testing.assert_array_equal(_gate_output(model, 0).numpy()[:, layer.neurons], draws[0])
    moved = np.isclose(draws, shifted, atol=1e-6)
    np.testing.assert_allclose(draws, np.where(moved, shifted, values), atol=1e-6)
    probability = np.where(p_f > p_r, p_f / (p_r + p_f), 0.0)
    distinct = np.abs(shifted - values) > 1e-4
    errors = np.sqrt(probability * (1 - probability) / len(draws)) + 1e-3
    assert np.all(np.abs(moved.mean(axis=0) - probability)[distinct] < 5 * errors[distinct])


def test_far_tails_where_densities_underflow_still_have_a_winner() -> None:
    model = tiny_model("llama", layers=2)
    neurons = np.arange(WIDTH)
    narrow = np.full(WIDTH, 1e-4)
    # Every value is thousands of deviations away from both means, and nearer to the forget set's.
    layer = AdjustedLayer(0, neurons, np.full(WIDTH, 50.0), narrow, np.full(WIDTH, 60.0), narrow)
    before = _gate_output(model, 0).numpy()
    for coin in ("threshold", "expected"):
        with Hooks(model, [NeuronAdjust(coin, (layer,))]):
            after = _gate_output(model, 0).numpy()
        np.testing.assert_allclose(after, 110.0 - before, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_what_goes_into_down_layer_after_layer(family: str) -> None:
    model = tiny_model(family, layers=3)
    layers = feed_forward_layers(model)
    seen = []
    handles = [
        layers[n].down.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].flatten(0, -2)))
        for n in (0, 2)
    ]
    with torch.no_grad(), Hooks(model, [_cubes(0, 2, width=tiny_width(family))]) as hooks:
        model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    assert hooks.seen[0].dtype == torch.float64
    assert torch.equal(hooks.seen[0], torch.cat(seen, dim=-1).double())


def test_interventions_apply_in_order_and_the_later_sees_the_earlier() -> None:
    model = tiny_model("llama", layers=2)
    first, second = NeuronAdjust("threshold", (_adjusted(0),)), NeuronAdjust("expected", (_adjusted(0, seed=1),))
    with Hooks(model, [first]):
        after_first = _gate_output(model, 0)
    with Hooks(model, [first, second]) as hooks:
        _gate_output(model, 0)
    assert torch.equal(hooks.seen[1], after_first[:, second.layers[0].neurons])


def test_nothing_is_left_when_the_context_closes() -> None:
    model = tiny_model("phi3", layers=2)
    before = _gate_output(model, 1)
    with pytest.raises(ZeroDivisionError), Hooks(model, [NeuronAdjust("threshold", (_adjusted(0),)), _cubes(1)]):
        raise ZeroDivisionError
    assert torch.equal(_gate_output(model, 1), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("intervention", "cause"),
    [
        (NeuronAdjust("threshold", (_adjusted(2),)), "names layer 2 of a model with 2"),
        (_cubes(2), "names layer 2 of a model with 2"),
        (
            NeuronAdjust("threshold", (AdjustedLayer(0, np.array([96]), *np.ones((4, 1))),)),
            "names neuron 96 of 96",
        ),
        (
            KeySpaceDetection((1,), Cubes(np.ones((1, 95)), np.ones((1, 95))), np.ones(1), ("math",), np.array([7, 1])),
            "dimension is not 96",
        ),
    ],
)
def test_a_plan_for_another_shape_is_refused(intervention: NeuronAdjust | KeySpaceDetection, cause: str) -> None:
    with pytest.raises(PlanError, match=cause):
        Hooks(tiny_model("llama", layers=2), [intervention])
