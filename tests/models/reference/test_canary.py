"""The canary: measured on the model that a plan is fitted on, it knows that model from its likes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import AdjustedLayer, Coin, Cubes, Intervention, KeySpaceDetection, NeuronAdjust, PlanError
from bakeout.models.plan.canary_check import compare_canary
from bakeout.models.reference.canary import canary_values, measure_canary, measured_anew
from bakeout.models.reference.weight_edits import edited_weights

from tests.baked_parity import key_space_detection
from tests.tiny_models import random_prompts, tiny_model
from tests.weight_plans import edits_of_experts, low_rank_update

WIDTH = 96
PROMPTS = random_prompts(6, shortest=5, longest=9)


def _adjust(coin: Coin, *layers: int) -> NeuronAdjust:
    ones = np.ones(3)
    return NeuronAdjust(coin, tuple(AdjustedLayer(n, np.array([1, 5, 8]), ones, ones, 0 * ones, ones) for n in layers))


def _cubes(*layers: int) -> KeySpaceDetection:
    shape = (2, len(layers) * WIDTH)
    return KeySpaceDetection(
        layers, Cubes(np.zeros(shape), np.ones(shape)), np.array([1.0, 2.0]), ("math", "code"), np.array([7, 1])
    )


def test_it_holds_the_first_prompts_cut_to_one_length() -> None:
    prompts = [[2, 3, 4], [5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15], [16] * 9]
    canary = measure_canary(tiny_model("llama"), [_cubes(0)], prompts, sequences=2)
    assert canary.input_ids.tolist() == [[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]]
    assert canary.input_ids.dtype == np.int64


def test_no_prompt_of_four_tokens_is_an_error() -> None:
    with pytest.raises(BakeoutError, match="None of the 2 prompts has 4 tokens"):
        measure_canary(tiny_model("llama"), [_cubes(0)], [[2, 3, 4], [5]])


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
def test_it_holds_pre_activations_and_margins_at_the_last_token(family: str) -> None:
    model = tiny_model(family)
    interventions: list[Intervention] = [_adjust("threshold", 0), _cubes(0)]
    canary = measure_canary(model, interventions, PROMPTS)
    layer = feed_forward_layers(model)[0]
    seen = []
    handle = layer.gate.register_forward_hook(
        lambda module, arguments, output: seen.append(layer.pre_activation(output).reshape(4, -1, WIDTH)[:, -1])
    )
    with torch.no_grad():
        model(input_ids=torch.from_numpy(canary.input_ids))
    handle.remove()
    pre_activations, margins = canary.expected
    np.testing.assert_array_equal(pre_activations, seen[0].double().numpy()[:, [1, 5, 8]])
    assert margins.shape == (4, 2)
    assert margins.dtype == np.float64


@pytest.mark.parametrize(
    ("interventions", "known"),
    [
        ([_adjust("threshold", 1, 2), _cubes(3)], [[1, 1], [1]]),
        # The first layer that a coin touches is seen before it is tossed; its key vector is not.
        ([_adjust("stochastic", 1, 2), _cubes(1)], [[1, 0], [0]]),
        ([_adjust("stochastic", 1, 2), _cubes(0)], [[1, 0], [1]]),
        ([_cubes(0, 3), _adjust("stochastic", 2)], [[0], [1]]),
        # Another adjustment of that layer comes before the coin or after it.
        ([_adjust("threshold", 1), _adjust("stochastic", 1)], [[1], [1]]),
        ([_adjust("stochastic", 1), _adjust("threshold", 0, 1, 2)], [[1], [1, 0, 0]]),
        ([_adjust("stochastic", 2), _adjust("stochastic", 1)], [[0], [1]]),
    ],
)
def test_what_a_coin_has_a_part_in_is_unknown(interventions: list[Intervention], known: list[list[int]]) -> None:
    canary = measure_canary(tiny_model("llama"), interventions, PROMPTS)
    for intervention, values, layers in zip(interventions, canary.expected, known, strict=True):
        per_layer = 3 if isinstance(intervention, NeuronAdjust) else 2
        assert np.isnan(values).tolist() == [np.repeat(np.array(layers) == 0, per_layer).tolist()] * len(values)


@pytest.mark.parametrize("intervention", [_adjust("threshold", 1, 2), _cubes(1, 2)])
def test_it_knows_its_own_model_from_another_of_the_same_shape(intervention: Intervention) -> None:
    (own,) = measure_canary(tiny_model("llama"), [intervention], PROMPTS).expected
    (other,) = measure_canary(tiny_model("llama", seed=1), [intervention], PROMPTS).expected
    assert compare_canary(own, own, intervention, 1e-9).ok
    match = compare_canary(own, other, intervention, 0.05)
    assert not match.ok
    assert match.kind == intervention.kind
    assert match.distance > 0.1
    assert match.compared == own.size


def test_distances_are_in_retain_deviations_or_relative_to_the_margin() -> None:
    adjust = NeuronAdjust(
        "threshold", (AdjustedLayer(0, np.array([1, 2]), np.ones(2), np.ones(2), np.ones(2), np.array([2.0, 4.0])),)
    )
    match = compare_canary(np.array([[1.0, 1.0]]), np.array([[3.0, 3.0]]), adjust, 1.0)
    assert match.distance == pytest.approx((2 / 2 + 2 / 4) / 2)
    match = compare_canary(np.array([[10.0, 2.0]]), np.array([[11.0, 2.0]]), _cubes(0), 1.0)
    assert match.distance == pytest.approx(0.05)


def test_unknown_values_are_not_compared_and_a_skipped_comparison_is_not_ok() -> None:
    match = compare_canary(np.array([[np.nan, 2.0]]), np.array([[5.0, 2.0]]), _cubes(0), 0.1)
    assert match.ok
    assert match.compared == 1
    match = compare_canary(np.array([[np.nan, np.nan]]), np.array([[5.0, 2.0]]), _cubes(0), 0.1)
    assert match.skipped
    assert not match.ok


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_that_computes_no_number_is_infinitely_far(broken: float) -> None:
    match = compare_canary(np.array([[1.0, 2.0]]), np.array([[1.0, broken]]), _cubes(0), 0.1)
    assert not match.ok
    assert not match.skipped
    assert match.distance == np.inf


def test_shapes_must_agree() -> None:
    with pytest.raises(PlanError, match=r"\(1, 2\), and \(1, 3\)"):
        compare_canary(np.zeros((1, 2)), np.zeros((1, 3)), _cubes(0), 0.1)


@pytest.mark.parametrize(
    ("family", "settings", "router", "known"),
    [
        # One FFL beside three routers: it lies in the last block, behind all of them.
        ("qwen3_moe", {"mlp_only_layers": [3]}, 0, []),
        ("qwen3_moe", {"mlp_only_layers": [3]}, 2, []),
        # One router, in the last block: the three dense FFLs come before it.
        ("deepseek_v3", {"first_k_dense_replace": 3}, 0, [0, 1, 2]),
    ],
)
def test_behind_a_refusing_router_is_what_lies_in_its_block_or_a_later_one(
    family: str, settings: dict[str, Any], router: int, known: list[int]
) -> None:
    model = tiny_model(family, **settings)
    prompts = random_prompts(8, seed=3, shortest=6, longest=6)
    edit = low_rank_update(model, layers=(0,), scale=0.1)
    layers = range(len(feed_forward_layers(model)))
    with edited_weights(model, [edit]):
        adjusted = _adjust("threshold", *layers)
        check = key_space_detection(model, (router,), "query", prompts, [edit, adjusted], keys="router_input")
        interventions = [edit, adjusted, check]
        canary = measured_anew(model, interventions, [measure_canary(model, interventions, prompts, sequences=8)])
    refused = np.array(canary.refused)
    assert 0 < refused.sum() < len(refused)
    of_edit, of_neurons, of_check = (np.isfinite(values) for values in canary.expected)
    assert of_edit[~refused].all() and of_neurons[~refused].all() and of_check.all()
    # A weight edit is seen in the last FFL.
    assert not of_edit[refused].any()
    by_layer = of_neurons[refused].reshape(-1, len(layers), 3)
    assert [layer for layer in layers if by_layer[:, layer].all()] == known
    assert [layer for layer in layers if by_layer[:, layer].any()] == known


@pytest.mark.parametrize("settings", [{"mlp_only_layers": [0]}, {"mlp_only_layers": [3]}, {}])
def test_the_canary_of_weight_edits_sees_what_lies_in_the_last_blocks(settings: dict[str, Any]) -> None:
    """Feed-forward layers that see every token can lie in the first blocks of a mixture alone."""
    model, other = (tiny_model("qwen3_moe", **settings) for _ in range(2))
    edits = edits_of_experts(model)
    canary = measure_canary(model, edits, PROMPTS)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "layers.2." in name:
                weight.normal_()
    measured = canary_values(other, edits, canary.input_ids)
    for edit, expected, values in zip(edits, canary.expected, measured, strict=True):
        assert not compare_canary(expected, values, edit, 0.1).ok


def test_a_joined_check_keeps_sequences_of_both() -> None:
    model = tiny_model("llama")
    prompts = [random_prompts(32, seed=seed, shortest=6, longest=6) for seed in (3, 9)]
    first, second = (key_space_detection(model, (1,), "query", own) for own in prompts)
    second = replace(second, skills=("c", "d"))
    canaries = [
        measure_canary(model, [check], own, sequences=count)
        for check, own, count in zip((first, second), prompts, (32, 24), strict=True)
    ]
    joined = measured_anew(model, [first.joined(second)], canaries)
    rows = [tuple(row) for row in joined.input_ids.tolist()]
    assert rows == [tuple(row) for canary in canaries for row in canary.input_ids[:16].tolist()]
    assert joined.uncovered == ()
    # Where there is room, none is left out.
    few = [replace(canary, input_ids=canary.input_ids[:count]) for canary, count in zip(canaries, (25, 3), strict=True)]
    assert len(measured_anew(model, [first.joined(second)], few).input_ids) == 28
