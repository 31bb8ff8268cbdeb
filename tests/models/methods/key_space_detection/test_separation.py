"""Areas under ROC curves count pairs, and their intervals hold what they promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.methods.key_space_detection.figures import depth_figure
from bakeout.models.methods.key_space_detection.separation import (
    CLEARANCE,
    Share,
    auroc,
    distance,
    harmonic_mean,
    reach_before,
    roc,
    share_inside,
)

# Few different values, so that ties are common.
MARGINS = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=30)


def _pairs(forget: list[float], retain: list[float]) -> float:
    return float(np.mean([(one < other) + (one == other) / 2 for one in forget for other in retain]))


@given(MARGINS, MARGINS)
def test_the_area_is_the_share_of_pairs_in_order(forget: list[float], retain: list[float]) -> None:
    area = auroc(np.array(forget), np.array(retain))
    assert area.value == pytest.approx(_pairs(forget, retain), abs=1e-12)
    assert 0 <= area.low <= area.value + 1e-12
    assert area.value - 1e-12 <= area.high <= 1


@given(MARGINS, MARGINS)
def test_the_area_is_the_integral_of_the_curve(forget: list[float], retain: list[float]) -> None:
    curve = roc(np.array(forget), np.array(retain))
    false, true = np.concatenate([[0.0], curve.retain]), np.concatenate([[0.0], curve.forget])
    assert np.trapezoid(true, false) == pytest.approx(auroc(np.array(forget), np.array(retain)).value, abs=1e-12)
    assert (curve.forget[-1], curve.retain[-1]) == (1.0, 1.0)


@given(MARGINS, MARGINS)
def test_the_other_way_round_it_is_the_rest(forget: list[float], retain: list[float]) -> None:
    one, other = auroc(np.array(forget), np.array(retain)), auroc(np.array(retain), np.array(forget))
    assert one.value == pytest.approx(1 - other.value, abs=1e-12)
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)


def test_the_interval_is_as_wide_as_a_bootstrap_s() -> None:
    generator = np.random.default_rng(1)
    forget, retain = np.round(generator.normal(0, 1, 300), 1), np.round(generator.normal(1.5, 2, 200), 1)
    area = auroc(forget, retain)
    drawn = [auroc(generator.choice(forget, 300), generator.choice(retain, 200)).value for _ in range(600)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert [area.low, area.high] == pytest.approx([low, high], abs=0.012)


def test_the_interval_holds_the_true_area_as_often_as_promised() -> None:
    """Two exponentials of rates 1 and 1/4: P(X < Y) = 4/5."""
    generator = np.random.default_rng(2)
    held = []
    for _ in range(500):
        area = auroc(generator.exponential(1, 60), generator.exponential(4, 80))
        held.append(area.low <= 0.8 <= area.high)
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("forget", "retain"), [(100, 100), (100, 10_000), (10_000, 100)])
def test_an_area_of_one_is_as_sure_as_the_fewer_queries_make_it(forget: int, retain: int) -> None:
    area = auroc(np.zeros(forget), np.ones(retain))
    assert (area.value, area.high) == (1.0, 1.0)
    # Clopper and Pearson: 100 trials of which none failed.
    assert area.low == pytest.approx(Share(100, 100).interval()[0])
    assert 0.96 < area.low < 0.965


def test_the_better_of_two_areas_near_one_does_not_end_lower() -> None:
    clear = auroc(np.zeros(1000), np.ones(1000))
    nearly = auroc(np.zeros(1000), np.concatenate([[-1.0], np.ones(999)]))
    assert nearly.low <= clear.low


def test_shares_inside_count_the_border() -> None:
    np.testing.assert_array_equal(
        share_inside(np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.5, 1.0, 2.0, 9.0])), [0.0, 0.25, 0.75, 1.0]
    )


def test_a_share_of_nothing_says_nothing() -> None:
    assert (Share(0, 0).value, Share(0, 0).interval()) == (0.0, (0.0, 1.0))


def test_an_area_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="both kinds"):
        auroc(np.zeros(0), np.ones(3))


def test_the_distance_is_between_means_in_deviations() -> None:
    spread = np.resize([-1.0, 1.0], 10)
    assert distance(spread, 3 * spread + 8) == pytest.approx(2)
    assert distance(np.zeros(2), np.ones(2)) == np.inf


@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_mean_of_two_distances_is_high_only_where_both_are(first: float, second: float) -> None:
    mean = harmonic_mean(first, second)
    assert mean == harmonic_mean(second, first)
    assert min(first, second) * (1 - 1e-12) <= mean <= 2 * min(first, second)
    assert harmonic_mean(first, math.inf) == pytest.approx(2 * first)
    assert harmonic_mean(-first, second) == -first
    assert harmonic_mean(0.0, second) == 0
    assert harmonic_mean(math.inf, math.inf) == math.inf


def test_alpha_reaches_as_far_as_the_nearest_name_to_retain_leaves_room() -> None:
    generator = np.random.default_rng(0)
    near, far = generator.normal(20, 2, 400), generator.normal(40, 1, 400)
    assert (
        reach_before([near, far])
        == reach_before([far, near])
        == pytest.approx(min(near.mean() - CLEARANCE * near.std(), near.min()))
    )
    assert not (near <= reach_before([near, far])).any()
    # A few that lie nearer are not passed.
    nearer = np.append(far, [12.0, 12.5])
    assert 11.9 < reach_before([near + 20, nearer]) < 12
    # Of few queries no deviation is known.
    assert reach_before([near, far[:20]]) == reach_before([]) == -math.inf


def test_a_single_query_of_the_others_has_no_spread_to_compare_with() -> None:
    generator = np.random.default_rng(0)
    skill = {layer: generator.normal(size=(20, 6)).astype(np.float32) for layer in (0, 1)}
    lone = {layer: keys[:1] + 5 for layer, keys in skill.items()}
    others = {layer: keys + 5 for layer, keys in skill.items()}
    panels = [depth_figure("sums", skill, {"sums": skill, "names": keys})["panels"] for keys in (others, lone)]
    assert [len(own) for own in panels] == [3, 2]
    json.dumps(panels, allow_nan=False)
