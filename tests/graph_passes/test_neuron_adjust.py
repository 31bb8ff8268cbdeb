from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import graph_digest, load_graph
from bakeout.graph_passes.neuron_adjust import NeuronAdjustPass
from bakeout.models.plan import AdjustedLayer, Coin, NeuronAdjust

from tests.graph_passes.residual_stack import AdjustedStack, Array, residual_stack

COINS = get_args(Coin)
WIDTH = 12
NEURONS = np.array([1, 4, 5, 9])
EPSILON = float(np.finfo(np.float32).eps)
SMALLEST = float(np.finfo(np.float32).tiny)


def adjusted_layer(layer: int = 0, neurons: Array = NEURONS, **statistics: Array) -> AdjustedLayer:
    count = len(neurons)
    values = {
        "forget_mean": np.linspace(0.5, 2, count),
        "forget_deviation": np.linspace(0.4, 1.2, count),
        "retain_mean": np.linspace(-1, 0.5, count),
        "retain_deviation": np.linspace(1.1, 0.3, count),
    }
    return AdjustedLayer(layer, neurons, **{**values, **statistics})


def adjust(coin: Coin, *layers: AdjustedLayer, seed: int = 0) -> NeuronAdjust:
    return NeuronAdjust(coin=coin, layers=layers or (adjusted_layer(),), seed=seed)


def baked(model: ir.Model, *interventions: NeuronAdjust, inline: bool = False) -> AdjustedStack:
    for index, intervention in enumerate(interventions):
        NeuronAdjustPass(intervention, index, inline=inline)(model)
    return AdjustedStack(model)


def log_odds(layer: AdjustedLayer, v: Array) -> Array:
    """Log p_f(v) - log p_r(v), by the densities' formulas in float64; v: [tokens, n]."""

    def log_density(mean: Array, deviation: Array) -> Array:
        return -0.5 * ((v - mean) / deviation) ** 2 - np.log(deviation)

    return log_density(layer.forget_mean, layer.forget_deviation) - log_density(
        layer.retain_mean, layer.retain_deviation
    )


def transported(layer: AdjustedLayer, v: Array) -> Array:
    return layer.retain_mean - layer.retain_deviation * (v - layer.forget_mean) / layer.forget_deviation


def textbook(coin: Coin, layer: AdjustedLayer, v: Array) -> Array:
    q = log_odds(layer, v)
    if coin == "threshold":
        return np.where(q > 0, transported(layer, v), v)
    a = 1 / (1 + np.exp(-np.clip(q, -700, 700)))
    return np.where(q > 0, v + a * (transported(layer, v) - v), v)


def uncertainty_of_log_odds(layer: AdjustedLayer, v: Array) -> Array:
    """How far float32 can be off q: the rounding of v and the means in units of the deviations, times |z|."""
    z, rounding = np.zeros_like(v), np.zeros_like(v)
    for mean, deviation in (
        (layer.forget_mean, layer.forget_deviation),
        (layer.retain_mean, layer.retain_deviation),
    ):
        z = z + np.abs(v - mean) / deviation
        rounding = rounding + (np.abs(v) + np.abs(mean)) / deviation
    apart = np.abs(np.log(layer.retain_deviation / layer.forget_deviation))
    return np.asarray(4 * EPSILON * ((1 + z) * (z + rounding) + apart))


def assert_textbook(coin: Coin, layer: AdjustedLayer, v: Array, after: Array) -> None:
    """``after`` is what the formulas say of ``v``; where q is 0 within float32's reach, either side is right."""
    q = log_odds(layer, v)
    expected = textbook(coin, layer, v)
    scale = np.abs(v) + np.abs(transported(layer, v)) + np.abs(layer.retain_mean)
    reach = uncertainty_of_log_odds(layer, v)
    # Float32 has no more digits below its smallest normal number.
    tolerance = SMALLEST + (
        8
        * EPSILON
        * (scale + layer.retain_deviation / layer.forget_deviation * (np.abs(v) + np.abs(layer.forget_mean)))
    )
    if coin == "expected":
        tolerance = tolerance + reach * np.abs(transported(layer, v) - v)
    right = np.abs(after - expected) <= tolerance
    undecided = np.abs(q) <= reach
    either = np.minimum(np.abs(after - v), np.abs(after - textbook("threshold", layer, v)))
    either = np.minimum(either, np.abs(after - transported(layer, v)))
    half_way = np.abs(after - (v + transported(layer, v)) / 2)
    assert np.all(right | (undecided & ((either <= tolerance) | (half_way <= tolerance))))


means = st.floats(-20, 20, width=32)
deviations = st.floats(2**-10, 8, width=32)


@st.composite
def statistics(draw: st.DrawFn) -> AdjustedLayer:
    def of(strategy: st.SearchStrategy[float]) -> Array:
        return np.array(draw(st.lists(strategy, min_size=4, max_size=4)))

    return adjusted_layer(
        forget_mean=of(means),
        forget_deviation=of(deviations),
        retain_mean=of(means),
        retain_deviation=of(deviations),
    )


@pytest.mark.parametrize("coin", ["threshold", "expected"])
@settings(max_examples=40, deadline=None)
@given(layer=statistics(), seed=st.integers(0, 2**32 - 1))
def test_deterministic_coins_are_the_textbooks(coin: Coin, layer: AdjustedLayer, seed: int) -> None:
    x = np.random.default_rng(seed).normal(scale=10, size=(50, WIDTH)).astype(np.float32)
    # Near the means, where both densities count, and far out in the tails, where both are 0 in any float.
    x[:20, NEURONS] = layer.forget_mean + layer.forget_deviation * np.linspace(-3, 3, 20)[:, None]
    x[20:40, NEURONS] = layer.retain_mean + layer.retain_deviation * np.linspace(-3, 3, 20)[:, None]
    x[40:45, NEURONS] = np.array([[1e4], [-1e4], [300], [-300], [0]])
    (after,) = baked(residual_stack(WIDTH), adjust(coin, layer))(x)
    assert np.all(np.isfinite(after))
    assert_textbook(coin, layer, x[:, NEURONS].astype(np.float64), after[:, NEURONS])


def test_means_that_are_many_deviations_from_0_blur_no_decision() -> None:
    layer = adjusted_layer(
        forget_mean=np.array([1000.0, -1000, 300, 5000]),
        forget_deviation=np.array([0.5, 0.5, 0.02, 3]),
        retain_mean=np.array([1001.0, -1003, 300.01, 5000]),
        retain_deviation=np.array([0.5, 1.5, 0.01, 1]),
    )
    x = np.zeros((4000, WIDTH), np.float32)
    x[:, NEURONS] = layer.forget_mean + layer.forget_deviation * np.linspace(-6, 6, 4000)[:, None]
    (after,) = baked(residual_stack(WIDTH), adjust("threshold", layer))(x)
    v = x[:, NEURONS].astype(np.float64)
    # What one unit in the last place of v is to the log-odds, twice.
    step = np.abs(log_odds(layer, np.nextafter(x[:, NEURONS], np.float32(np.inf))) - log_odds(layer, v))
    clear = np.abs(log_odds(layer, v)) > 2 * step
    assert clear.mean() > 0.99
    assert np.array_equal((after[:, NEURONS] != x[:, NEURONS])[clear], (log_odds(layer, v) > 0)[clear])


def test_equal_gaussians_leave_every_value() -> None:
    mean, deviation = np.array([0, 0.5, -2, 1e3]), np.array([1, 0.3, 2, 5])
    layer = AdjustedLayer(0, NEURONS, mean, deviation, mean, deviation)
    x = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    x[0, NEURONS] = mean
    (after,) = baked(residual_stack(WIDTH), adjust("threshold", layer))(x)
    np.testing.assert_array_equal(after, x)


@pytest.mark.parametrize("coin", ["threshold", "expected"])
def test_float16_graphs_compute_in_float32(coin: Coin) -> None:
    layer = adjusted_layer()
    x = np.linspace(-2000, 2000, 400 * WIDTH).reshape(400, WIDTH).astype(np.float16)
    x[:200] /= 500
    (after,) = baked(residual_stack(WIDTH, dtype=np.float16), adjust(coin, layer))(x)
    assert after.dtype == np.float16
    v = x[:, NEURONS].astype(np.float64)
    assert np.abs(v).max() > 256
    clear = np.abs(log_odds(layer, v)) > 1e-4
    expected = textbook(coin, layer, v)
    np.testing.assert_allclose(after[:, NEURONS][clear], expected[clear], rtol=1e-3, atol=1e-3)
    assert np.any(log_odds(layer, v) > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("coin", COINS)
def test_all_other_neurons_keep_every_bit(coin: Coin, dtype: type[np.floating]) -> None:
    x = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(dtype)
    (after,) = baked(residual_stack(WIDTH, dtype=dtype), adjust(coin))(x)
    others = np.setdiff1d(np.arange(WIDTH), NEURONS)
    assert after[:, others].tobytes() == x[:, others].tobytes()
    assert np.any(after[:, NEURONS] != x[:, NEURONS])


@pytest.mark.parametrize("coin", COINS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_value_stays_alone(coin: Coin, poison: float) -> None:
    x = np.random.default_rng(1).normal(size=(64, WIDTH)).astype(np.float32)
    bias = np.zeros(WIDTH)
    clean = baked(residual_stack(WIDTH, bias=bias), adjust(coin))(x)[0]
    bias[NEURONS[2]] = poison
    poisoned = baked(residual_stack(WIDTH, bias=bias), adjust(coin))(x)[0]
    rest = np.arange(WIDTH) != NEURONS[2]
    np.testing.assert_array_equal(poisoned[:, rest], clean[:, rest])
    assert not np.any(np.isfinite(poisoned[:, NEURONS[2]]))


DRAWS = 120_000


def shifts(stack: AdjustedStack, v: Array) -> list[Array]:
    """Per layer which of ``DRAWS`` tokens with the pre-activations ``v`` [n] are shifted: bool [DRAWS, n]."""
    x = np.zeros((DRAWS, WIDTH), np.float32)
    x[:, NEURONS] = v
    return [after[:, NEURONS] != x[:, NEURONS] for after in stack(x)]


def values_with_log_odds(layer: AdjustedLayer, wanted: Array) -> Array:
    """A value per neuron with the wanted log-odds, between the retain mean and beyond the forget mean."""
    candidates = np.linspace(layer.retain_mean, layer.forget_mean + 3 * layer.forget_deviation, 20_000)
    best = np.abs(log_odds(layer, candidates) - wanted).argmin(axis=0)
    chosen: Array = candidates[best, np.arange(len(wanted))]
    return chosen


def test_the_share_of_shifted_values_is_a() -> None:
    layer = adjusted_layer()
    v = values_with_log_odds(layer, np.array([-0.5, 0.05, 0.7, 3.0])).astype(np.float32)
    (shifted,) = shifts(baked(residual_stack(WIDTH), adjust("stochastic", layer, seed=5)), v)
    q = log_odds(layer, v.astype(np.float64))
    a = 1 / (1 + np.exp(-q))
    assert q[0] < 0 and np.all(q[1:] > 0)
    assert not np.any(shifted[:, 0])
    standard_error = np.sqrt(a * (1 - a) / DRAWS)
    assert np.all(np.abs(shifted.mean(axis=0) - a)[1:] <= 4 * standard_error[1:])


def test_draws_of_layers_neurons_and_tokens_are_not_correlated() -> None:
    layers = [adjusted_layer(index) for index in range(3)]
    v = values_with_log_odds(layers[0], np.full(4, 0.5)).astype(np.float32)
    shifted = shifts(baked(residual_stack(WIDTH, layers=3), adjust("stochastic", *layers)), v)
    columns = np.concatenate(shifted, axis=1).astype(np.float64)
    following = np.concatenate([columns[1:], columns[:-1]], axis=1)
    limit = 4 / np.sqrt(DRAWS)
    assert np.abs(np.corrcoef(columns.T) - np.eye(12)).max() <= limit
    assert np.abs(np.corrcoef(following.T) - np.eye(24)).max() <= limit


def test_draws_of_two_interventions_are_not_correlated() -> None:
    first, second = (adjusted_layer(neurons=np.array(neurons)) for neurons in ([1, 4, 5, 9], [0, 2, 3, 7]))
    v = values_with_log_odds(first, np.full(4, 0.5)).astype(np.float32)
    x = np.zeros((DRAWS, WIDTH), np.float32)
    x[:, first.neurons] = x[:, second.neurons] = v
    stack = baked(residual_stack(WIDTH), adjust("stochastic", first), adjust("stochastic", second))
    shifted = stack(x)[0] != x
    pairs = np.corrcoef(shifted[:, np.concatenate([first.neurons, second.neurons])].astype(np.float64).T)
    assert np.abs(pairs - np.eye(8)).max() <= 4 / np.sqrt(DRAWS)


def test_a_seed_gives_the_same_draws_in_every_session_and_new_ones_in_every_run() -> None:
    v = values_with_log_odds(adjusted_layer(), np.full(4, 0.5)).astype(np.float32)
    stacks = [baked(residual_stack(WIDTH), adjust("stochastic", seed=seed)) for seed in (7, 7, 8)]
    first, again, other = (shifts(stack, v)[0] for stack in stacks)
    second_run = shifts(stacks[0], v)[0]
    assert np.array_equal(first, again)
    assert 0.2 < (first != other).mean() < 0.7
    assert 0.2 < (first != second_run).mean() < 0.7


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("coin", COINS)
def test_inlined_nodes_compute_the_same(coin: Coin, dtype: type[np.floating]) -> None:
    x = np.random.default_rng(2).normal(size=(64, WIDTH)).astype(dtype)
    layers = [adjusted_layer(0), adjusted_layer(1, np.array([0, 4, 7, 11]))]
    as_function, inlined = residual_stack(WIDTH, 2, dtype), residual_stack(WIDTH, 2, dtype)
    expected = baked(as_function, adjust(coin, *layers))(x)
    after = baked(inlined, adjust(coin, *layers), inline=True)(x)
    for one, other in zip(expected, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [node.op_type for node in as_function.graph].count("NeuronAdjust") == 2
    assert {node.domain for node in inlined.graph} == {""}
    assert not inlined.functions
    assert set(inlined.opset_imports) == {""}


@pytest.mark.parametrize("inline", [False, True])
def test_interventions_with_two_coins_follow_one_another(inline: bool) -> None:
    x = np.random.default_rng(3).normal(size=(64, WIDTH)).astype(np.float32)
    first, second = adjusted_layer(), adjusted_layer(neurons=np.array([4, 5, 6, 7]))
    model = residual_stack(WIDTH)
    (after,) = baked(model, adjust("expected", first), adjust("threshold", second), inline=inline)(x)
    v = x.astype(np.float64)
    v[:, first.neurons] = textbook("expected", first, v[:, first.neurons])
    v[:, second.neurons] = textbook("threshold", second, v[:, second.neurons])
    np.testing.assert_allclose(after, v, atol=1e-5)


def test_all_who_read_the_pre_activation_read_the_node_instead() -> None:
    model = residual_stack(WIDTH)
    before = read_anatomy(model).layers[0].pre_activation
    consumer = ir.Node("", "Sigmoid", [before])
    model.graph.append(consumer)
    NeuronAdjustPass(adjust("threshold"), 0)(model)
    assert [node.op_type for node, _ in before.uses()] == ["NeuronAdjust"]
    (node,) = (node for node, _ in before.uses())
    assert consumer.inputs[0] is node.outputs[0]


def test_constants_are_initialisers_with_telling_names() -> None:
    model = residual_stack(WIDTH)
    NeuronAdjustPass(adjust("threshold"), 0)(model)
    layer = adjusted_layer()
    prefix = "bakeout.neuron_adjust_0.layers.0"
    held = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if prefix in name and value.const_value is not None
    }
    assert held[f"{prefix}.neurons"].tolist() == NEURONS.tolist()
    np.testing.assert_array_equal(
        held[f"{prefix}.gain"], (-layer.retain_deviation / layer.forget_deviation).astype(np.float32)
    )
    boundary = held[f"{prefix}.boundary"].astype(np.float64)
    assert np.abs(log_odds(layer, boundary)).max() < 1e-5
    assert all(array.dtype == np.float32 for name, array in held.items() if not name.endswith("neurons"))


def test_a_receipt_for_every_layer() -> None:
    model = residual_stack(WIDTH, layers=3)
    before = graph_digest(model)
    edit = NeuronAdjustPass(adjust("expected", adjusted_layer(0), adjusted_layer(2, np.array([3, 4, 5, 6]))), 1)
    edit(model)
    assert [(r.intervention, r.layer, r.node, r.tensor, r.count) for r in edit.receipts] == [
        (1, 0, "gate_0", "pre_activation_0", 4),
        (1, 2, "gate_2", "pre_activation_2", 4),
    ]
    assert {(r.before, r.after) for r in edit.receipts} == {(before, graph_digest(model))}


@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        (adjusted_layer(1), "layer 1, but the graph has 1 feed-forward layers"),
        (adjusted_layer(neurons=np.array([0, 1, 2, WIDTH])), "neuron 12 of 12 in layer 0"),
        (adjusted_layer(retain_deviation=np.array([1, 1, 1e-42, 1])), "retain_deviation leaves the range of float32"),
        (adjusted_layer(forget_mean=np.array([1, 1, 1, 1e40])), "boundary leaves the range of float32"),
    ],
)
def test_what_does_not_fit_is_told_before_the_graph_changes(layer: AdjustedLayer, cause: str) -> None:
    model = residual_stack(WIDTH)
    before = graph_digest(model)
    with pytest.raises(GraphError, match=cause):
        NeuronAdjustPass(adjust("threshold", layer), 0).call(model)
    assert graph_digest(model) == before


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("phi3", "gpt2", "opt"))]
)
def test_an_exported_model_is_valid_and_changed(
    family: str, inline: bool, onnx_of: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_graph(onnx_of(family) / "model.onnx")
    logits = []
    for step in range(2):
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds: dict[str, Array] = {
            "input_ids": np.array([[5, 9, 200]]),
            "attention_mask": np.ones((1, 3), np.int64),
            "position_ids": np.arange(3)[None],
        }
        for value in session.get_inputs():
            if value.name.startswith("past_key_values"):
                feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        names = {value.name for value in session.get_inputs()}
        logits.append(session.run(["logits"], {name: feeds[name] for name in feeds if name in names})[0])
        if step == 0:
            model.ir_version = 10
            layers = [adjusted_layer(index, np.arange(4, 90)) for index in (0, 3)]
            NeuronAdjustPass(adjust("threshold", *layers), 0, inline=inline)(model)
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    assert "arning" not in capfd.readouterr().err
