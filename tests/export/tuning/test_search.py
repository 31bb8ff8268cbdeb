"""The search finds what a grid finds, goes on where it stopped, and chooses by the stated rule."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.tuning.search import near, search
from bakeout.export.tuning.trials import Measured, Trial, choose_trial
from bakeout.models.methods.search_space import Among, Settings, Span

SPACE: Mapping[str, Span | Among] = {"ratio": Span(0.003, 0.6), "selection": Among(("difference", "standardised"))}
STARTS: tuple[Settings, ...] = ({"ratio": 0.03, "selection": "difference"}, {"ratio": 0.2, "selection": "difference"})


def _measured(left: float, kept: float, divergence: float = 0.1) -> Measured:
    return Measured({"math": left}, {"code": 1.0, "poems": kept}, divergence)


def _trade_off(settings: Settings) -> Measured:
    """The more neurons, the less is left and kept; standardised does better."""
    ratio = settings["ratio"]
    left = max(0.0, 1 - ratio / (0.25 if settings["selection"] == "standardised" else 0.4))
    return _measured(left, 1 - ratio**2, ratio)


def test_of_those_that_keep_enough_the_one_that_forgets_most_is_chosen() -> None:
    trials = [
        Trial({"ratio": 1}, _measured(0.3, 0.99)),
        Trial({"ratio": 2}, _measured(0.1, 0.96)),
        Trial({"ratio": 3}, _measured(0.0, 0.94)),
        Trial({"ratio": 4}, _measured(0.1, 0.95, divergence=0.05)),
    ]
    assert choose_trial(trials).settings == {"ratio": 4}


def test_where_none_keeps_enough_the_knee_is_chosen() -> None:
    trials = [
        Trial({"ratio": index}, _measured(*point)) for index, point in enumerate([(0, 0.2), (0.3, 0.8), (1, 0.9)])
    ]
    assert choose_trial(trials).settings == {"ratio": 1}


def _search(tmp_path: Path, trials: int, measure: Any = _trade_off, **options: Any) -> list[Trial]:
    arguments: Mapping[str, Any] = {"seed": 1, "name": "one", **options}
    return search(SPACE, STARTS, measure, trials=trials, journal=tmp_path / "journal.log", **arguments)


def test_twenty_trials_come_within_two_points_of_a_grid_s_best(tmp_path: Path) -> None:
    found = _search(tmp_path, 20)
    grid = [
        Trial(settings, _trade_off(settings))
        for settings in (
            {"ratio": 0.003 * 200 ** (step / 19), "selection": selection}
            for step in range(20)
            for selection in ("difference", "standardised")
        )
    ]
    best, chosen = choose_trial(grid).measured, choose_trial(found).measured
    assert chosen.left <= best.left + 0.02
    assert chosen.kept >= best.kept - 0.02
    assert [trial.settings for trial in found[:2]] == list(STARTS)


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = _search(tmp_path / "whole", 9)
    measured: list[Settings] = []

    def interrupted(settings: Settings) -> Measured:
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(settings)
        return _trade_off(settings)

    with pytest.raises(KeyboardInterrupt):
        _search(tmp_path / "parted", 9, interrupted)
    again: list[Settings] = []

    def resumed(settings: Settings) -> Measured:
        again.append(settings)
        return _trade_off(settings)

    assert _search(tmp_path / "parted", 9, resumed) == whole
    assert len(again) <= 4


def test_the_widest_bracket_of_what_may_be_better_is_halved() -> None:
    def trial(ratio: float, selection: str, left: float, kept: float) -> Trial:
        return Trial({"ratio": ratio, "selection": selection}, _measured(left, kept))

    enough, too_much = trial(0.1, "difference", 0.5, 0.99), trial(0.4, "difference", 0.1, 0.9)
    assert near([enough, too_much], SPACE) == {"ratio": 0.2, "selection": "difference"}
    assert near([enough], SPACE) == {"ratio": pytest.approx((0.1 * 0.6) ** 0.5, rel=0.01), "selection": "difference"}
    promising, hopeless = trial(0.3, "standardised", 0.2, 0.9), trial(0.3, "standardised", 0.6, 0.9)
    assert near([enough, too_much, promising], SPACE) == {"ratio": 0.03, "selection": "standardised"}
    assert near([enough, too_much, hopeless], SPACE) == {"ratio": 0.2, "selection": "difference"}
    assert near([enough, trial(0.105, "difference", 0.1, 0.9)], SPACE) is None
    assert near([too_much], SPACE) == {
        "ratio": pytest.approx((0.003 * 0.4) ** 0.5, rel=0.01),
        "selection": "difference",
    }
    assert near([trial(0.1, "difference", 0.0, 0.99)], SPACE) is None


def test_another_name_is_another_search(tmp_path: Path) -> None:
    assert len(_search(tmp_path, 3)) == len(_search(tmp_path, 3, name="other")) == 3


def test_a_line_for_each_trial_with_the_best_so_far_and_the_time_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _search(tmp_path, 3)
    said = caplog.text
    assert "trial 1 of 3: ratio 0.03, selection difference: of base, math 92% left" in said
    assert "all others at least 96% (poems)" in said
    assert "best so far: ratio 0.2" in said
    assert "0:00 left" in said
