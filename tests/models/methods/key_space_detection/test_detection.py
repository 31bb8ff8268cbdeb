"""Key Space Detection's cubes contain what they promise, and refuse little else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.plan import KeySpaceDetection

from tests.fitted_regions import cubes_of

WIDTH = 6
REFUSAL = [7, 8, 1]
Keys = dict[int, np.ndarray]


def _keys(count: int, seed: int, *, centre: float = 0.0, scale: float = 1.0, layers: tuple[int, ...] = (1, 3)) -> Keys:
    generator = np.random.default_rng(seed)
    return {
        layer: (centre + scale * generator.normal(size=(count, WIDTH))).astype(np.float32) for layer in sorted(layers)
    }


def _two_clusters(count: int, seed: int) -> Keys:
    near, far = _keys(count, seed, centre=-20.0), _keys(count, seed + 1, centre=20.0)
    return {layer: np.concatenate([near[layer], far[layer]]) for layer in near}


def _joint(keys: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.concatenate([keys[layer] for layer in sorted(keys)], axis=1).astype(np.float64)


def _refused(check: KeySpaceDetection, keys: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.asarray((check.margins(_joint(keys)) <= check.alpha).any(axis=1))


def _fit(**changes: Any) -> KeySpaceDetection:
    """``changes``: of the data, or of the options."""
    data: dict[str, Any] = {
        "probe": {"math": _keys(100, 1)},
        "calibration": {"math": _keys(300, 2)},
        "retain": {},
        "refusal": REFUSAL,
        "variants": {},
        "against": None,
        "beside": None,
        "places": None,
    }
    given = {name: changes.pop(name) for name in data if name in changes}
    options = KeySpaceDetectionOptions(**{"forget": ["math"], "layers": [1, 3], **changes})
    return fit_key_space_detection(**{**data, **given}, options=options)


def test_one_cube_is_the_paper_s() -> None:
    probe = _keys(100, 1)
    check = _fit(probe={"math": probe}, floor=0.0)
    np.testing.assert_allclose(cubes_of(check).centre[0], _joint(probe).mean(axis=0))
    np.testing.assert_allclose(cubes_of(check).deviation[0], _joint(probe).std(axis=0, ddof=1))
    assert (check.layers, check.skills, check.positions) == ((1, 3), ("math",), "query")
    assert check.refusal.tolist() == REFUSAL


def test_a_half_space_s_alpha_goes_on_where_what_is_retained_leaves_room() -> None:
    def fitted(centre: float, **changes: Any) -> KeySpaceDetection:
        against, beside = ({"poems": _keys(count, seed, centre=centre)} for count, seed in ((100, 3), (200, 4)))
        return _fit(against=against, beside=beside, retain=beside, **{"region": "linear", **changes})

    near, far = fitted(0.5), fitted(20)
    held = near.report.as_json()["skills"]["math"]
    assert held["alpha"] == near.alpha[0] and "quantile" not in held
    report = far.report.as_json()
    assert report["skills"]["math"]["quantile"] < far.alpha[0] == report["skills"]["math"]["alpha"]
    assert report["skills"]["math"]["guaranteed_coverage"] == 0.995
    assert report["retain"]["poems"]["refused"] == 0
    assert "beyond the quantile's" in dict(far.report.facts())["coverage"]
    # Not of another shape, nor where alpha is given.
    assert "quantile" not in fitted(20, region="cube").report.as_json()["skills"]["math"]
    assert fitted(20, alpha=2.0).alpha[0] == 2


def test_what_is_retained_and_refused_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Most often it asks for what is to be forgotten: who reads where it stands can take it out."""

    def told(refused: int) -> str:
        caplog.clear()
        poems, asking = _keys(200 - refused, 3, centre=50.0), _keys(refused, 4, scale=0.5)
        retained = {layer: np.concatenate([poems[layer], asking[layer]]) for layer in poems}
        _fit(retain={"poems": retained}, places={"poems": [f"poems.jsonl:{line}" for line in range(1, 201)]})
        return caplog.text

    assert "5 of 200 queries of poems, which is to be retained, are refused: poems.jsonl:196; " in told(5)
    assert "poems.jsonl:199 (and 1 more). If they ask for what is to be forgotten" in told(5)
    # As many as are tolerated.
    assert not told(2)


def test_one_layer_alone_uses_its_keys_alone() -> None:
    keys = _keys(100, 1)
    check = _fit(probe={"math": keys}, layers=[3])
    assert check.layers == (3,)
    np.testing.assert_allclose(cubes_of(check).centre[0], keys[3].mean(axis=0, dtype=np.float64))


def test_the_order_in_which_layers_are_named_does_not_matter() -> None:
    one, other = _fit(layers=[1, 3]), _fit(layers=[3, 1])
    np.testing.assert_array_equal(cubes_of(one).centre, cubes_of(other).centre)
    assert one.layers == other.layers


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.005, 0.01, 0.1, 0.3]), st.integers(1, 3))
def test_alpha_is_the_smallest_that_holds_the_conformal_share(seed: int, epsilon: float, cubes: int) -> None:
    count = 250
    calibration = _keys(count, seed)
    check = _fit(probe={"math": _keys(60, seed + 1)}, calibration={"math": calibration}, epsilon=epsilon, cubes=cubes)
    assert len(set(check.alpha)) == 1
    nearest = check.margins(_joint(calibration)).min(axis=1)
    inside = int((nearest <= check.alpha[0]).sum())
    # ceil((n + 1)(1 - epsilon)) of n, counted in thousandths.
    assert inside == -(-(count + 1) * round(1000 * (1 - epsilon)) // 1000)
    assert check.report.as_json()["skills"]["math"]["calibration_inside"] == inside / count


def test_fresh_queries_are_covered_as_promised() -> None:
    """Over 200 fits, the mean coverage of exchangeable queries is at least 1 - epsilon, and little more."""
    epsilon, covered = 0.1, []
    for seed in range(200):
        check = _fit(
            probe={"math": _keys(40, 3 * seed)},
            calibration={"math": _keys(99, 3 * seed + 1)},
            epsilon=epsilon,
            cubes=1 + seed % 2,
        )
        covered.append(_refused(check, _keys(200, 3 * seed + 2)).mean())
    standard_error = np.std(covered) / np.sqrt(len(covered))
    assert abs(np.mean(covered) - (1 - epsilon)) <= 4 * standard_error
    assert standard_error < 0.005


@pytest.mark.parametrize(("epsilon", "needed"), [(0.005, 199), (0.01, 99), (0.1, 9), (0.3, 3)])
def test_too_few_calibration_queries_are_refused_saying_how_many_are_needed(epsilon: float, needed: int) -> None:
    with pytest.raises(BakeoutError, match=f"{needed - 1} calibration queries of math.*at least {needed},"):
        _fit(calibration={"math": _keys(needed - 1, 2)}, epsilon=epsilon)
    check = _fit(calibration={"math": _keys(needed, 2)}, epsilon=epsilon)
    assert check.report.as_json()["skills"]["math"]["calibration_inside"] == 1.0


def test_a_given_alpha_is_used_as_it_is() -> None:
    check = _fit(alpha=3, calibration={})
    assert check.alpha.tolist() == [3.0]
    report = check.report.as_json()["skills"]["math"]
    assert (report["alpha"], report["epsilon"], report["guaranteed_coverage"]) == (3.0, None, None)
    assert report["calibration_inside"] is None
    reported = _fit(alpha=3.0, calibration={"math": _keys(50, 2)}).report.as_json()["skills"]["math"]
    assert reported["calibration_queries"] == 50
    assert 0 < reported["calibration_inside"] <= 1


def test_a_cube_per_cluster_leaves_the_space_between_open() -> None:
    probe, calibration = {"math": _two_clusters(60, 1)}, {"math": _two_clusters(150, 3)}
    between = {"other": _keys(200, 5)}
    one = _fit(probe=probe, calibration=calibration, retain=between)
    two = _fit(probe=probe, calibration=calibration, retain=between, cubes=2)
    assert one.report.as_json()["retain"]["other"]["refused"] == 200
    assert two.report.as_json()["retain"]["other"]["refused"] == 0
    assert two.report.as_json()["skills"]["math"]["cubes"] == [60, 60]
    assert two.report.as_json()["skills"]["math"]["calibration_inside"] >= 0.995


def test_several_skills_have_their_own_cubes_and_alphas() -> None:
    check = _fit(
        probe={"math": _keys(100, 1), "code": _two_clusters(100, 2)},
        calibration={"math": _keys(300, 4), "code": _two_clusters(150, 5)},
        cubes=2,
    )
    assert check.skills == ("math", "math", "code", "code")
    assert check.alpha[0] == check.alpha[1] != check.alpha[2] == check.alpha[3]
    alone = _fit(cubes=2, calibration={"math": _keys(300, 4)})
    np.testing.assert_array_equal(cubes_of(check).centre[:2], cubes_of(alone).centre)
    np.testing.assert_array_equal(check.alpha[:2], alone.alpha)


def test_the_same_queries_give_the_same_cubes() -> None:
    one, other = _fit(cubes=4, seed=5), _fit(cubes=4, seed=5)
    np.testing.assert_array_equal(cubes_of(one).centre, cubes_of(other).centre)
    np.testing.assert_array_equal(one.alpha, other.alpha)
    assert one.report == other.report


def test_empty_clusters_leave_fewer_cubes() -> None:
    point = {layer: np.repeat(keys, 20, axis=0) for layer, keys in _keys(3, 1).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check = _fit(probe={"math": point}, cubes=8)
    assert 1 <= len(cubes_of(check).centre) < 8
    assert len(cubes_of(check).centre) == len(check.report.as_json()["skills"]["math"]["cubes"])
    assert np.isfinite(cubes_of(check).centre).all()
    assert (cubes_of(check).deviation > 0).all()


def test_a_cluster_is_at_least_the_floor_wide() -> None:
    probe = _two_clusters(60, 1)
    overall = _joint(probe).std(axis=0, ddof=1)
    check = _fit(probe={"math": probe}, calibration={"math": _two_clusters(150, 3)}, cubes=2, floor=0.1)
    np.testing.assert_allclose(cubes_of(check).deviation, np.tile(0.1 * overall, (2, 1)))
    assert check.report.as_json()["skills"]["math"]["floored_dimensions"] == [12, 12]
    unfloored = _fit(probe={"math": probe}, calibration={"math": _two_clusters(150, 3)}, cubes=2, floor=0.0)
    assert (cubes_of(unfloored).deviation < cubes_of(check).deviation).all()


def test_dead_dimensions_are_floored_by_their_own_layer() -> None:
    probe = _keys(100, 1)
    probe[1] *= 1000
    probe[1][:, 2] = 0.25
    probe[3][:, 4:] = 0
    check = _fit(probe={"math": probe}, alpha=3.0, calibration={})
    for layer, offset, dead in ((1, 0, [2]), (3, WIDTH, [4, 5])):
        deviation = probe[layer].astype(np.float64).std(axis=0, ddof=1)
        median = np.median(deviation[deviation > 0])
        np.testing.assert_allclose(cubes_of(check).deviation[0, [offset + j for j in dead]], 1e-3 * median)


def test_false_refusals_are_counted_with_their_interval() -> None:
    check = _fit(retain={"near": _keys(200, 7, scale=1.3), "far": _keys(50, 8, centre=30.0)})
    near, far = check.report.as_json()["retain"]["near"], check.report.as_json()["retain"]["far"]
    assert near["refused"] == int(_refused(check, _keys(200, 7, scale=1.3)).sum()) > 0
    assert near["rate"] == near["refused"] / 200
    assert near["interval"][0] < near["rate"] < near["interval"][1]
    assert (far["queries"], far["refused"], far["interval"][0]) == (50, 0, 0.0)
    # Clopper-Pearson for 0 of n: 1 - (0.025)^(1/n).
    assert far["interval"][1] == pytest.approx(1 - 0.025 ** (1 / 50))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0.1, 100))
def test_units_do_not_matter(seed: int, cubes: int, scale: float) -> None:
    def scaled(keys: Keys) -> Keys:
        return {layer: values.astype(np.float64) * scale for layer, values in keys.items()}

    probe, calibration, fresh = _keys(60, seed), _keys(200, seed + 1), _keys(40, seed + 2)
    one = _fit(probe={"math": probe}, calibration={"math": calibration}, cubes=cubes)
    other = _fit(probe={"math": scaled(probe)}, calibration={"math": scaled(calibration)}, cubes=cubes)
    np.testing.assert_allclose(one.margins(_joint(fresh)), other.margins(_joint(scaled(fresh))), rtol=1e-6)
    np.testing.assert_allclose(one.alpha, other.alpha, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": [2]}, "no keys of layer 2"),
        ({"probe": {}}, "no skill"),
        ({"probe": {"math": _keys(1, 1)}}, "1 probe queries of math are too few"),
        ({"cubes": 101}, "too few for 101 cubes"),
        ({"calibration": {}}, "calibration queries of math have no keys"),
        ({"calibration": {"math": _keys(300, 2), "code": _keys(300, 2)}}, "for code, which is not probed"),
        ({"retain": {"code": {1: np.zeros((0, WIDTH)), 3: np.zeros((0, WIDTH))}}}, "queries of code have shapes"),
        ({"probe": {"math": {1: np.zeros((4, WIDTH)), 3: np.zeros((5, WIDTH))}}}, "have shapes"),
        ({"probe": {"math": {1: np.zeros((4, WIDTH)), 3: np.zeros((4, 2 * WIDTH))}}}, "Choose `layers` of one width"),
        ({"probe": {"math": {1: np.zeros((4, WIDTH)), 3: np.zeros((4, WIDTH))}}}, "do not vary"),
        ({"retain": {"code": {1: np.ones((4, 5)), 3: np.ones((4, 5))}}}, "queries of code have 10 numbers, not 12"),
        ({"calibration": {"math": {1: np.ones((4, 5)), 3: np.ones((4, 5))}}}, "have 10 numbers, not 12"),
        ({"probe": {"math": _keys(9, 1), "b": {1: np.ones((4, 5)), 3: np.ones((4, 5))}}}, "of b have 10 numbers"),
        ({"refusal": [1]}, "refusal"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BakeoutError, match=says):
        _fit(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": []},
        {"cubes": 0},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"alpha": "some"},
        {"alpha": {"times_largest": 0}},
        {"epsilon": 0.0},
        {"epsilon": 1.0},
        {"floor": -0.1},
        {"floor": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        _fit(**changes)


@pytest.mark.parametrize("open_option", ["layers", "cubes", "floor", "epsilon"])
def test_a_structure_is_chosen_before_it_is_fitted(open_option: str) -> None:
    with pytest.raises(ValueError, match="yet to be chosen"):
        _fit(**{open_option: "auto"})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["probe", "calibration", "retain"])
def test_keys_that_are_not_finite_are_refused(bad: float, role: str) -> None:
    keys = _keys(300, 9)
    keys[3][5, 2] = bad
    with pytest.raises(BakeoutError, match="NaN or infinite"):
        _fit(**{role: {"math": keys}})
