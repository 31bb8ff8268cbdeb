"""The arithmetic of weight edits: what was asked is what can be read back, to the rounding of the stored type."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bakeout.models.checkpoint.weight_arithmetic import (
    EDITABLE,
    PlannedChange,
    change_weight,
    change_with_receipt,
    planned_changes,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import LowRankUpdate, PlanError, WeightChange, WeightUpdate, ZeroColumns, ZeroedColumns

TYPES = tuple(EDITABLE.values())
# The distance from 1 to the next number, halved: the largest relative error of rounding.
HALF_STEP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _weight(random: np.random.Generator, dtype: np.dtype[Any], outputs: int, inputs: int) -> NDArray[Any]:
    return random.normal(size=(outputs, inputs)).astype(dtype)


def _product(random: np.random.Generator, outputs: int, inputs: int, rank: int, scale: float = 1.0) -> WeightUpdate:
    left = (scale * random.normal(size=(outputs, rank))).astype(np.float32)
    return WeightUpdate(1, "up", left, random.normal(size=(rank, inputs)).astype(np.float32))


def _planned(change: WeightChange) -> PlannedChange:
    return PlannedChange(3, "a_kind", change)


def _columns(*columns: int) -> PlannedChange:
    return _planned(ZeroedColumns(2, np.array(columns)))


shapes = st.tuples(st.integers(1, 600), st.integers(1, 9), st.integers(1, 4))


@given(st.sampled_from(TYPES), shapes, st.integers(0, 2**31), st.booleans())
def test_an_update_is_read_back_to_half_a_step(
    dtype: np.dtype[Any], shape: tuple[int, int, int], seed: int, transposed: bool
) -> None:
    outputs, inputs, rank = shape
    random = np.random.default_rng(seed)
    stored = _weight(random, dtype, *((inputs, outputs) if transposed else (outputs, inputs)))
    weight = stored.T if transposed else stored
    before = weight.astype(np.float64)
    change = _product(random, outputs, inputs, rank)
    asked = change.left.astype(np.float64) @ change.right
    norms = change_weight(weight, _planned(change))
    after = weight.astype(np.float64)
    # Rounded to float32, then to the stored type: a little over half a step.
    limit = 1.01 * HALF_STEP[dtype.name] * np.maximum(np.abs(before + asked), 2.0**-14)
    assert (np.abs(after - (before + asked)) <= limit).all()
    assert norms.before == pytest.approx(np.sum(before**2))
    assert norms.asked == pytest.approx(np.sum(asked**2))
    assert norms.realised == pytest.approx(np.sum((after - before) ** 2))
    assert norms.share == pytest.approx(np.sum(asked * (after - before)) / np.sum(asked**2))


@given(st.sampled_from(TYPES), shapes, st.integers(0, 2**31))
def test_it_is_torchs_arithmetic_to_the_bit(dtype: np.dtype[Any], shape: tuple[int, int, int], seed: int) -> None:
    outputs, inputs, rank = shape
    random = np.random.default_rng(seed)
    weight = _weight(random, dtype, outputs, inputs)
    change = _product(random, outputs, inputs, rank)
    expected = torch.from_numpy(weight.astype(np.float32)).to(getattr(torch, dtype.name)).double()
    expected += torch.from_numpy(change.left).double() @ torch.from_numpy(change.right).double()
    change_weight(weight, _planned(change))
    rounded = expected.float().to(getattr(torch, dtype.name)).float().numpy()
    np.testing.assert_array_equal(weight.astype(np.float32), rounded)


@given(st.sampled_from(TYPES), st.sets(st.integers(0, 8), min_size=1), st.integers(0, 2**31), st.booleans())
def test_zeroed_columns_are_exactly_zero_and_nothing_else_changes(
    dtype: np.dtype[Any], columns: set[int], seed: int, transposed: bool
) -> None:
    stored = _weight(np.random.default_rng(seed), dtype, *((9, 300) if transposed else (300, 9)))
    weight = stored.T if transposed else stored
    before = weight.astype(np.float64)
    norms = change_weight(weight, _columns(*sorted(columns)))
    others = [column for column in range(9) if column not in columns]
    zeroed = weight[:, sorted(columns)].astype(np.float64)
    assert (zeroed == 0).all() and not np.signbit(zeroed).any()
    np.testing.assert_array_equal(weight[:, others].astype(np.float64), before[:, others])
    assert norms.asked == norms.realised == pytest.approx(np.sum(before[:, sorted(columns)] ** 2))
    # Once more changes nothing, and is no error: the columns are as they were asked to be.
    again = change_weight(weight, _columns(*sorted(columns)))
    assert (again.realised, again.share) == (0, 1)


@given(st.integers(0, 2**31), shapes)
def test_an_update_and_its_opposite_leave_float32_where_it_was(seed: int, shape: tuple[int, int, int]) -> None:
    outputs, inputs, rank = shape
    random = np.random.default_rng(seed)
    weight = _weight(random, np.dtype(np.float32), outputs, inputs)
    before = weight.copy()
    change = _product(random, outputs, inputs, rank)
    assume(np.abs(change.left @ change.right).max() > 1e-3)
    change_weight(weight, _planned(change))
    change_weight(weight, _planned(replace(change, left=-change.left)))
    np.testing.assert_allclose(weight, before, atol=1e-5)


def test_the_receipt_holds_norms_and_digests() -> None:
    random = np.random.default_rng(0)
    stored = _weight(random, np.dtype(ml_dtypes.bfloat16), 12, 4)
    before = hashlib.sha256(stored.tobytes()).hexdigest()
    weight, change = stored[6:], _product(random, 6, 4, 2)
    receipt = change_with_receipt(
        weight, _planned(change), stored=stored, node="node", tensor="tensor", observed="value"
    )
    assert (receipt.intervention, receipt.kind, receipt.layer, receipt.count) == (3, "a_kind", 1, 2)
    assert (receipt.node, receipt.tensor) == ("node", "tensor")
    assert receipt.before == before
    assert receipt.after == hashlib.sha256(stored.tobytes()).hexdigest() != before
    assert receipt.detail.keys() == {
        *("role", "dtype", "norm_before", "norm_asked", "norm_realised", "share_realised", "observed")
    }
    assert (receipt.detail["role"], receipt.detail["dtype"], receipt.detail["observed"]) == ("up", "bfloat16", "value")


@pytest.mark.parametrize("dtype", TYPES)
def test_an_update_that_rounds_away_is_an_error(dtype: np.dtype[Any]) -> None:
    random = np.random.default_rng(1)
    step = 2 * HALF_STEP[dtype.name]
    weight = _weight(random, dtype, 64, 64)
    with pytest.raises(BakeoutError, match=f"layer 1, up: the change rounds away in {dtype.name}"):
        change_weight(weight.copy(), _planned(_product(random, 64, 64, 1, scale=step / 20)))
    assert change_weight(weight, _planned(_product(random, 64, 64, 1, scale=20 * step))).share > 0.9


def test_an_update_of_nothing_is_an_error() -> None:
    change = WeightUpdate(0, "up", np.zeros((3, 1), np.float32), np.ones((1, 3), np.float32))
    with pytest.raises(PlanError, match="all zero"):
        change_weight(np.ones((3, 3), np.float32), _planned(change))


def test_an_update_that_leaves_the_types_range_is_an_error() -> None:
    change = WeightUpdate(0, "up", np.full((3, 1), 300, np.float32), np.full((1, 3), 300, np.float32))
    change_weight(np.ones((3, 3), ml_dtypes.bfloat16), _planned(change))
    with pytest.raises(BakeoutError, match="leaves the range of float16"):
        change_weight(np.ones((3, 3), np.float16), _planned(change))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_an_error(value: float) -> None:
    weight = np.ones((4, 4), np.float32)
    weight[1, 2] = value
    for change in (_columns(0), _planned(_product(np.random.default_rng(0), 4, 4, 1))):
        with pytest.raises(BakeoutError, match="NaN or infinite"):
            change_weight(weight.copy(), change)


def test_shapes_must_fit() -> None:
    change = _planned(_product(np.random.default_rng(0), 5, 7, 2))
    change.require_shape((5, 7))
    for shape in ((7, 5), (5, 8), (5,), (5, 7, 1)):
        with pytest.raises(PlanError, match="does not fit"):
            change.require_shape(shape)
    _columns(0, 6).require_shape((5, 7))
    with pytest.raises(PlanError, match="does not fit"):
        _columns(0, 7).require_shape((5, 7))


def test_a_plans_changes_come_in_its_order() -> None:
    ones = np.ones((4, 1), np.float32), np.ones((1, 4), np.float32)
    update = LowRankUpdate("x", (WeightUpdate(0, "down", *ones), WeightUpdate(0, "gate", *ones)))
    zeroed = ZeroColumns((ZeroedColumns(1, np.array([2])), ZeroedColumns(3, np.array([0, 1]))))
    found = [
        (planned.intervention, planned.change.layer, planned.change.role, planned.change.count)
        for planned in planned_changes([zeroed, update])
    ]
    assert found == [(0, 1, "down", 1), (0, 3, "down", 2), (1, 0, "down", 1), (1, 0, "gate", 1)]
