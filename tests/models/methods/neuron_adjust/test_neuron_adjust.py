"""Neuron Adjust selects the neurons that the authors' score names, by the statistics alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.neuron_adjust.fit import RARE, Statistics, fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions, Selection
from bakeout.models.network.statistics import MixtureStatistics, Moments, NeuronStatistics
from bakeout.models.plan import NeuronAdjust

LAYERS, WIDTH, TOKENS = 3, 10, 50
SELECTIONS: list[Selection] = ["difference", "standardised"]


def _statistics(seed: int) -> NeuronStatistics:
    generator = np.random.default_rng(seed)
    shape = (LAYERS, WIDTH)
    return NeuronStatistics(Moments(TOKENS, generator.normal(size=shape), generator.uniform(0.1, 9, size=shape)))


def _changed(statistics: NeuronStatistics, **changes: object) -> NeuronStatistics:
    return NeuronStatistics(replace(statistics.moments, **changes))  # type: ignore[arg-type]


def _fit(forget: Statistics, retain: Statistics, **options: Any) -> NeuronAdjust:
    return fit_neuron_adjust(forget, retain, NeuronAdjustOptions(forget=["forget"], **options))


def _selected(fitted: NeuronAdjust) -> set[tuple[int, int]]:
    return {(layer.layer, int(neuron)) for layer in fitted.layers for neuron in layer.neurons}


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 1), st.sampled_from(SELECTIONS))
def test_the_selected_neurons_score_highest_of_all_layers(seed: int, ratio: float, selection: Selection) -> None:
    forget, retain = _statistics(seed), _statistics(seed + 1)
    fitted = _fit(forget, retain, ratio=ratio, selection=selection)
    score = forget.moments.mean - retain.moments.mean
    if selection == "standardised":
        variances = (forget.moments.m2 + retain.moments.m2) / (TOKENS - 1)
        score = score / np.sqrt(variances / 2)
    count = max(1, round(ratio * LAYERS * WIDTH))
    best = np.argsort(score, axis=None)[::-1][:count]
    assert _selected(fitted) == {(int(index) // WIDTH, int(index) % WIDTH) for index in best}
    assert fitted.report.as_json()["neurons"] == count
    assert sum(fitted.report.as_json()["neurons_per_layer"].values()) == count


@given(st.integers(0, 2**32 - 1))
def test_the_gaussians_are_the_statistics(seed: int) -> None:
    forget, retain = _statistics(seed), _statistics(seed + 1)
    for layer in _fit(forget, retain, ratio=0.5).layers:
        at = (layer.layer, layer.neurons)
        np.testing.assert_array_equal(layer.forget_mean, forget.moments.mean[at])
        np.testing.assert_array_equal(layer.retain_mean, retain.moments.mean[at])
        np.testing.assert_allclose(layer.forget_deviation**2 * (TOKENS - 1), forget.moments.m2[at])
        np.testing.assert_allclose(layer.retain_deviation**2 * (TOKENS - 1), retain.moments.m2[at])


@given(st.integers(0, 2**32 - 1), st.sampled_from(SELECTIONS), st.permutations(range(WIDTH)))
def test_renumbering_the_neurons_renumbers_the_selection(seed: int, selection: Selection, order: list[int]) -> None:
    forget, retain = _statistics(seed), _statistics(seed + 1)

    def renumbered(statistics: NeuronStatistics) -> NeuronStatistics:
        return _changed(statistics, mean=statistics.moments.mean[:, order], m2=statistics.moments.m2[:, order])

    before = _selected(_fit(forget, retain, ratio=0.3, selection=selection))
    after = _selected(_fit(renumbered(forget), renumbered(retain), ratio=0.3, selection=selection))
    assert {(layer, order[neuron]) for layer, neuron in after} == before


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-5, 5), st.sampled_from(SELECTIONS))
def test_units_do_not_matter(seed: int, scale: float, shift: float, selection: Selection) -> None:
    forget, retain = _statistics(seed), _statistics(seed + 1)

    def converted(statistics: NeuronStatistics) -> NeuronStatistics:
        moments = statistics.moments
        return _changed(statistics, mean=scale * moments.mean + shift, m2=scale**2 * moments.m2)

    before = _fit(forget, retain, ratio=0.3, selection=selection)
    assert _selected(_fit(converted(forget), converted(retain), ratio=0.3, selection=selection)) == (_selected(before))


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_ratio_selects_more_of_the_same(seed: int, one: float, other: float) -> None:
    forget, retain = _statistics(seed), _statistics(seed + 1)
    fewer, more = (_selected(_fit(forget, retain, ratio=r)) for r in sorted((one, other)))
    assert fewer <= more


def test_equal_scores_go_to_the_lower_layer_and_neuron() -> None:
    generator = np.random.default_rng(0)
    mean = generator.integers(0, 3, size=(4, 500)).astype(np.float64)
    forget = NeuronStatistics(Moments(TOKENS, mean, np.ones_like(mean)))
    retain = NeuronStatistics(Moments(TOKENS, np.zeros_like(mean), np.ones_like(mean)))
    best = [(int(layer), int(neuron)) for layer, neuron in np.argwhere(mean == 2)]
    assert len(best) > 500
    assert _selected(_fit(forget, retain, ratio=500 / 2000)) == set(best[:500])


@pytest.mark.parametrize("dead_set", ["forget", "retain"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_dead_neurons_are_never_selected(dead_set: str, selection: Selection) -> None:
    statistics = {"forget": _statistics(1), "retain": _statistics(2)}
    mean, m2 = (array.copy() for array in (statistics[dead_set].moments.mean, statistics[dead_set].moments.m2))
    # Constant at 0; constant at 0.1, where summing leaves a deviation of rounding errors; and so little about 0 that a
    # graph's float32 cannot hold 1 / deviation².
    constant = Moments.of(np.full((TOKENS, 1), np.float32(0.1)).astype(np.float64))
    mean[0, 3], m2[0, 3] = 0.0, 0.0
    mean[1, 4], m2[1, 4] = constant.mean[0], max(constant.m2[0], 1e-30)
    mean[1, 2], m2[1, 2] = 0.0, 1e-42 * TOKENS
    statistics[dead_set] = _changed(statistics[dead_set], mean=mean, m2=m2)
    fitted = _fit(statistics["forget"], statistics["retain"], ratio=1.0, selection=selection)
    assert len(_selected(fitted)) == LAYERS * WIDTH - 3
    assert not _selected(fitted) & {(0, 3), (1, 4), (1, 2)}
    assert fitted.report.as_json()["dead_neurons"] == 3


def test_the_report_says_what_was_fitted() -> None:
    fitted = _fit(_statistics(1), _statistics(2), ratio=0.2, coin="stochastic", seed=9)
    assert (fitted.coin, fitted.seed) == ("stochastic", 9)
    expected = {"ratio": 0.2, "selection": "difference", "coin": "stochastic", "neurons": 6, "dead_neurons": 0}
    assert expected.items() <= fitted.report.as_json().items()
    assert (fitted.report.as_json()["forget_tokens"], fitted.report.as_json()["retain_tokens"]) == (TOKENS, TOKENS)


def test_the_report_says_which_tokens_the_gaussians_are_of() -> None:
    everything, answers = (_fit(_statistics(1), _statistics(2), tokens=tokens) for tokens in ("all", "answer"))
    assert (everything.tokens, answers.tokens) == ("all", "answer")
    assert ("tokens", "all") in everything.report.facts()
    # As in plans of earlier versions.
    assert "tokens" not in answers.report.as_json()


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, float("nan")])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(ValidationError, match="ratio"):
        _fit(_statistics(1), _statistics(2), ratio=ratio)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["mean", "m2"])
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_statistics_that_are_not_finite_are_refused(bad: float, array: str, side: str) -> None:
    statistics = {"forget": _statistics(1), "retain": _statistics(2)}
    values = getattr(statistics[side].moments, array).copy()
    values[1, 2] = bad
    statistics[side] = _changed(statistics[side], **{array: values})
    with pytest.raises(BakeoutError, match=f"{side} set's statistics hold NaN"):
        _fit(statistics["forget"], statistics["retain"], ratio=0.1)


def test_other_statistics_that_cannot_be_fitted_are_refused() -> None:
    whole = _statistics(1)
    with pytest.raises(BakeoutError, match="at least 2 tokens"):
        _fit(whole, _changed(whole, count=1), ratio=0.1)
    other = NeuronStatistics(Moments(TOKENS, np.zeros((2, WIDTH)), np.ones((2, WIDTH))))
    with pytest.raises(BakeoutError, match="shapes"):
        _fit(whole, other, ratio=0.1)
    dead = _changed(whole, m2=np.zeros((LAYERS, WIDTH)))
    with pytest.raises(BakeoutError, match="no neuron"):
        _fit(whole, dead, ratio=0.1)
    with pytest.raises(ValidationError, match="selection"):
        _fit(whole, whole, ratio=0.1, selection="random")


def test_rare_experts_are_left_alone_and_told() -> None:
    def statistics(tokens: tuple[int, ...], mean: float) -> MixtureStatistics:
        return MixtureStatistics(100, tuple(Moments(n, np.full(4, mean), np.full(4, 9.0 * n)) for n in tokens))

    # A layer that sees every token, an expert, and two that one of the sets hardly reaches.
    fitted = _fit(statistics((100, 40, RARE - 1, 90), 2.0), statistics((100, RARE, 80, 0), 0.0), ratio=1.0)
    assert [layer.layer for layer in fitted.layers] == [0, 1]
    assert (fitted.report.rare_experts, fitted.report.dead_neurons) == (2, 0)
    assert ("rare", "2 experts, sent too few tokens, left alone") in fitted.report.facts()


def test_a_layer_that_sees_every_token_is_not_rare_where_the_sets_differ_in_size() -> None:
    forget, retain = (
        MixtureStatistics(count, (Moments(count, np.full(4, mean), np.full(4, 9.0 * count)),))
        for count, mean in ((RARE - 3, 2.0), (RARE - 1, 0.0))
    )
    assert _fit(forget, retain, ratio=1.0).report.rare_experts == 0
