"""Regions of every shape in plan files: read back as they were, and refused where they are garbled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from bakeout.models.plan import Cubes, KeySpaceDetection, Plan, PlanError, Regions
from bakeout.models.plan.kinds.regions.ellipsoid import Ellipsoids
from bakeout.models.plan.kinds.regions.linear import HalfSpaces
from bakeout.models.plan.kinds.regions.registry import REGIONS
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.fitted_regions import SHAPES, fitted_regions
from tests.plan_examples import key_space_detection, plan


def _regions(name: str) -> Regions:
    """Three in the key space of ``plan_examples``."""
    generator = np.random.default_rng(0)
    clusters = [generator.normal(place, 1, (40, 32)) for place in (0, 2, 4)]
    return fitted_regions(name, clusters, generator.normal(-4, 1, (50, 32)))


def _plan(name: str) -> Plan:
    return plan(key_space_detection(regions=_regions(name)))


def _described(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described: dict[str, Any] = json.loads(header["__metadata__"]["bakeout"])
    return described


@pytest.mark.parametrize("name", SHAPES)
def test_they_come_back_from_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.safetensors"
    data = plan_bytes(_plan(name))
    path.write_bytes(data)
    read = load_plan(path)
    assert plan_bytes(read) == data
    (check,) = read.interventions
    assert isinstance(check, KeySpaceDetection)
    assert type(check.regions) is REGIONS[name]
    keys = np.random.default_rng(1).normal(size=(7, 32))
    np.testing.assert_array_equal(check.margins(keys), _regions(name).margins(keys))
    (fact, *_) = [text for title, text in check.describe().facts if title == check.regions.noun]
    assert fact.startswith("math: alpha 2, 32 dimensions, ")


def test_a_plan_of_cubes_is_readable_to_versions_that_know_no_others() -> None:
    (entry,) = _described(plan_bytes(_plan("cube")))["interventions"]
    assert entry["schema"] == 1
    assert "region" not in entry


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "cube"])
def test_a_plan_of_other_shapes_is_not(name: str) -> None:
    (entry,) = _described(plan_bytes(_plan(name)))["interventions"]
    assert entry["schema"] == 2
    assert entry["region"] == name


_Arrays = dict[str, Any]


def _shorter(arrays: _Arrays, name: str) -> None:
    arrays[name] = arrays[name][:-1]


def _narrower(arrays: _Arrays, name: str) -> None:
    arrays[name] = np.ascontiguousarray(arrays[name][..., :-1])


def _not_a_number(arrays: _Arrays, name: str) -> None:
    arrays[name] = np.full_like(arrays[name], np.nan)


def _single(arrays: _Arrays, name: str) -> None:
    arrays[name] = arrays[name].astype(np.float32)


def _gone(arrays: _Arrays, name: str) -> None:
    del arrays[name]


@pytest.mark.parametrize("garble", [_shorter, _narrower, _not_a_number, _single, _gone])
@pytest.mark.parametrize(("region", "array"), [(name, array) for name in SHAPES for array in _regions(name).arrays()])
def test_garbled_arrays_are_refused(
    region: str, array: str, garble: Callable[[_Arrays, str], None], tmp_path: Path
) -> None:
    data = plan_bytes(_plan(region))
    arrays = load(data)
    garble(arrays, f"interventions.0.{array}")
    path = tmp_path / "plan.safetensors"
    path.write_bytes(save(arrays, {"bakeout": json.dumps(_described(data))}))
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("region", ["sphere", None, 3, ["cube"]])
def test_an_unknown_shape_is_refused(region: Any, tmp_path: Path) -> None:
    data = plan_bytes(_plan("linear"))
    described = _described(data)
    described["interventions"][0]["region"] = region
    path = tmp_path / "plan.safetensors"
    path.write_bytes(save(load(data), {"bakeout": json.dumps(described)}))
    with pytest.raises(PlanError):
        load_plan(path)


def _low_rank() -> Ellipsoids:
    ones = np.ones((1, 4))
    return Ellipsoids(ones, ones, np.eye(4)[None, :, :2], np.ones((1, 2)), np.ones(1))


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        (lambda: HalfSpaces(np.zeros((2, 4)), np.zeros(3)), "different numbers"),
        (lambda: HalfSpaces(np.zeros(4), np.zeros(1)), "weight has shape"),
        (lambda: HalfSpaces(np.zeros((1, 4)), np.array([np.inf])), "bias holds NaN"),
        (lambda: Cubes(np.zeros((1, 4)), np.zeros((1, 4))), "not positive"),
        (lambda: replace(_low_rank(), scale=np.zeros((1, 2))), "not positive"),
        (lambda: replace(_low_rank(), directions=np.ones((1, 4, 2))), "not orthonormal"),
        (lambda: replace(_low_rank(), directions=np.full((1, 4, 2), 0.1)), "not orthonormal"),
        (lambda: replace(_low_rank(), directions=np.full((1, 4, 2), np.inf)), "directions holds NaN"),
        (lambda: replace(_low_rank(), rest=np.zeros(1)), "not positive"),
    ],
)
def test_contradictions_are_named(regions: Callable[[], Regions], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        regions()


def test_an_alpha_below_0_is_a_half_spaces_alone() -> None:
    alpha = np.array([-1.0, 0.0, 2.0])
    assert key_space_detection(regions=_regions("linear"), alpha=alpha).alpha is alpha
    for name in SHAPES:
        if name != "linear":
            with pytest.raises(PlanError, match="alpha is not positive"):
                key_space_detection(regions=_regions(name), alpha=alpha)
