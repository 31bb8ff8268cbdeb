"""A plan that contradicts itself cannot be made, and margins are the papers' cubes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bakeout.models.plan import LONGEST_REFUSAL, Canary, PlanError

from tests.fitted_regions import cubes_of
from tests.plan_examples import (
    MODEL,
    adjusted_layer,
    key_space_detection,
    low_rank_update,
    neuron_adjust,
    plan,
    weight_update,
    zero_columns,
    zeroed_columns,
)

NAN = np.array([np.nan, 1.0])
CANARY = np.array([[2, 3]])


@pytest.mark.parametrize(
    ("make", "changes", "says"),
    [
        (adjusted_layer, {"neurons": np.array([], dtype=np.int64)}, "no neurons"),
        (adjusted_layer, {"neurons": np.array([[1, 5]])}, "no neurons"),
        (adjusted_layer, {"neurons": np.array([5, 1])}, "not ascending"),
        (adjusted_layer, {"neurons": np.array([5, 5])}, "not ascending"),
        (adjusted_layer, {"neurons": np.array([-1, 5])}, "not ascending"),
        (adjusted_layer, {"forget_mean": np.array([1.0])}, "forget_mean has shape"),
        (adjusted_layer, {"forget_mean": NAN}, "forget_mean holds NaN"),
        (adjusted_layer, {"forget_deviation": NAN}, "forget_deviation holds NaN"),
        (adjusted_layer, {"retain_mean": np.array([np.inf, 1.0])}, "retain_mean holds NaN"),
        (adjusted_layer, {"retain_deviation": np.array([0.0, 1.0])}, "not positive"),
        (adjusted_layer, {"forget_deviation": np.array([-1.0, 1.0])}, "not positive"),
        (neuron_adjust, {"coin": "dice"}, "no coin"),
        (neuron_adjust, {"seed": -1}, "seed"),
        (neuron_adjust, {"seed": 2**31}, "seed"),
        (neuron_adjust, {"layers": ()}, "layers"),
        (neuron_adjust, {"layers": (adjusted_layer(layer=2), adjusted_layer(layer=1))}, "layers"),
        (neuron_adjust, {"layers": (adjusted_layer(), adjusted_layer())}, "layers"),
        (key_space_detection, {"layers": ()}, "layers"),
        (key_space_detection, {"layers": (3, 1)}, "layers"),
        (key_space_detection, {"layers": (-1, 1)}, "layers"),
        (key_space_detection, {"positions": "sometimes"}, "no positions"),
        (key_space_detection, {"centre": np.zeros((3, 31))}, "different shapes"),
        (key_space_detection, {"centre": np.zeros(32)}, "centre has shape"),
        (key_space_detection, {"centre": np.zeros((0, 32))}, "centre has shape"),
        (key_space_detection, {"deviation": np.ones((2, 32))}, "different shapes"),
        (key_space_detection, {"centre": np.zeros((3, 31)), "deviation": np.ones((3, 31))}, "not those of 2 layers"),
        (key_space_detection, {"alpha": np.ones(2)}, "as many alphas"),
        (key_space_detection, {"skills": ("math",)}, "as many alphas"),
        (key_space_detection, {"centre": np.full((3, 32), np.nan)}, "centre holds NaN"),
        (key_space_detection, {"deviation": np.full((3, 32), np.inf)}, "deviation holds NaN"),
        (key_space_detection, {"alpha": np.array([np.inf, 1, 1])}, "alpha holds NaN"),
        (key_space_detection, {"deviation": np.zeros((3, 32))}, "not positive"),
        (key_space_detection, {"alpha": np.array([0.0, 1, 1])}, "not positive"),
        (key_space_detection, {"refusal": np.array([1])}, "refusal"),
        (key_space_detection, {"refusal": np.array([-7, 1])}, "refusal"),
        (key_space_detection, {"refusal": np.ones(LONGEST_REFUSAL + 1, dtype=np.int64)}, "refusal"),
        (adjusted_layer, {"layer": -1}, "counted from 0"),
        (zeroed_columns, {"layer": -1}, "counted from 0"),
        (weight_update, {"layer": -1}, "counted from 0"),
        (weight_update, {"layer": "1"}, "counted from 0"),
        (zeroed_columns, {"columns": np.array([], dtype=np.int64)}, "no columns"),
        (zeroed_columns, {"columns": np.array([7, 0])}, "not ascending"),
        (zeroed_columns, {"columns": np.array([-1, 0])}, "not ascending"),
        (zero_columns, {"layers": ()}, "layers"),
        (zero_columns, {"layers": (zeroed_columns(), zeroed_columns())}, "layers"),
        (weight_update, {"role": "sideways"}, "no weight"),
        (weight_update, {"left": np.ones((8, 3), np.float32)}, "no product"),
        (weight_update, {"left": np.ones(8, np.float32)}, "no product"),
        (weight_update, {"left": np.ones((8, 0), np.float32), "right": np.ones((0, 16), np.float32)}, "empty"),
        (weight_update, {"right": np.full((2, 16), np.nan, np.float32)}, "right holds NaN"),
        (low_rank_update, {"updates": ()}, "ascending order"),
        (low_rank_update, {"updates": (weight_update(), weight_update())}, "ascending order"),
        (low_rank_update, {"updates": (weight_update(), weight_update(layer=2))}, "ascending order"),
    ],
)
def test_an_intervention_that_contradicts_itself_is_refused(
    make: Callable[..., Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        make(**changes)


@pytest.mark.parametrize(
    ("interventions", "changes", "says"),
    [
        ((), {"interventions": (), "canary": Canary(CANARY, ())}, "no intervention"),
        ((), {"canary": Canary(CANARY, (np.zeros((1, 2)),))}, "one entry per intervention"),
        ((key_space_detection(), key_space_detection()), {}, "2 of Key Space Detection"),
        ((neuron_adjust(layers=(adjusted_layer(layer=4),)),), {}, "names layer 4 of a model with 4"),
        ((neuron_adjust(layers=(adjusted_layer(neurons=np.array([1, 16])),)),), {}, "names neuron 16 of 16"),
        ((key_space_detection(layers=(1, 4)),), {}, "names layer 4"),
        ((zero_columns(layers=(zeroed_columns(layer=4),)),), {}, "names layer 4"),
        ((zero_columns(layers=(zeroed_columns(columns=np.array([16])),)),), {}, "does not fit"),
        ((low_rank_update(updates=(weight_update(layer=4),)),), {}, "names layer 4"),
        ((low_rank_update(updates=(weight_update(role="up"),)),), {}, "does not fit"),
        ((key_space_detection(layers=(1,)),), {}, "dimension is not 16"),
        ((key_space_detection(refusal=np.array([264, 1])),), {}, "vocabulary"),
        ((key_space_detection(other_ends=(264,)),), {}, "vocabulary"),
        ((), {"canary": Canary(np.array([[264]]), (np.zeros((1, 2)),) * 2)}, "vocabulary"),
        ((), {"canary": Canary(np.array([[-1]]), (np.zeros((1, 2)),) * 2)}, "vocabulary"),
        ((), {"canary": Canary(np.zeros((0, 3), dtype=np.int64), (np.zeros((0, 2)),) * 2)}, "vocabulary"),
        ((), {"canary": Canary(CANARY, (np.zeros((2, 2)),) * 2)}, "malformed"),
        ((), {"canary": Canary(CANARY, (np.zeros(1),) * 2)}, "malformed"),
        ((), {"canary": Canary(CANARY, (np.full((1, 2), np.inf),) * 2)}, "malformed"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(interventions: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        plan(*interventions, **changes)


def test_canary_values_downstream_of_a_stochastic_coin_may_be_nan() -> None:
    plan(canary=Canary(CANARY, (np.full((1, 2), np.nan),) * 2))


def test_the_model_is_known_by_its_dimensions() -> None:
    MODEL.require_shape(widths=[16] * 4, hidden=8)
    for widths, hidden in (([16] * 5, 8), ([16, 16, 16, 17], 8), ([16] * 4, 9)):
        with pytest.raises(PlanError, match="fitted on a model of 4 layers"):
            MODEL.require_shape(widths=widths, hidden=hidden)


def test_a_model_whose_layers_differ_in_width() -> None:
    model = replace(MODEL, widths=(8, 16, 16, 8))
    model.require_shape(widths=[8, 16, 16, 8], hidden=8)
    assert (model.weight_shape("gate", 0), model.weight_shape("down", 1)) == ((8, 8), (8, 16))
    with pytest.raises(PlanError, match="FFL width 8 or 16"):
        model.require_shape(widths=[16] * 4, hidden=8)
    with pytest.raises(PlanError, match="not those of 4 layers"):
        replace(MODEL, widths=(8, 16, 16))


@given(arrays.arrays(np.float64, (5, 32), elements=st.floats(-200, 200)))
def test_a_margin_is_at_most_alpha_exactly_where_every_dimension_is_in_the_cube(keys: np.ndarray) -> None:
    check = key_space_detection()
    inside = check.margins(keys) <= check.alpha
    for cube in range(3):
        difference = np.abs((keys - cubes_of(check).centre[cube]) / cubes_of(check).deviation[cube])
        assert inside[:, cube].tolist() == (difference <= check.alpha[cube]).all(axis=1).tolist()
