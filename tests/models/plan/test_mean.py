"""Checks of the mean key: which tokens count, and plans that hold such a check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from bakeout.models.plan import KeySpaceDetection, PlanError, Positions, first_of_mean
from bakeout.models.plan.plan_file import load_plan, save_plan

from tests.plan_examples import key_space_detection, plan

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
OPENINGS = st.lists(st.integers(0, 2), max_size=3)


@given(TOKENS, OPENINGS, st.booleans())
def test_tokens_count_from_the_last_opening_on(tokens: list[int], opening: list[int], has_past: bool) -> None:
    first = first_of_mean(tokens, opening, has_past=has_past)
    starts = [start for start in range(len(tokens)) if opening and tokens[start : start + len(opening)] == opening]
    least = 0 if has_past or len(tokens) == 1 else 1
    assert first == max([least, *starts])
    assert tokens[first:]


@given(TOKENS, TOKENS, st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_what_stands_before_a_query_does_not_count(before: list[int], query: list[int], opening: list[int]) -> None:
    text = [*opening, *query]
    counted = text[first_of_mean(text, opening, has_past=True) :]
    whole = [*before, *text]
    for has_past in (False, True):
        assert whole[first_of_mean(whole, opening, has_past=has_past) :] == counted


def test_the_key_that_decides() -> None:
    mean = key_space_detection(positions="mean", query_start=(7,))
    assert [1, 7, 8, 9][mean.decisive([1, 7, 8, 9])] == [7, 8, 9]
    for positions in ("query", "step", "every"):
        assert [1, 7, 8, 9][key_space_detection(positions=positions).decisive([1, 7, 8, 9])] == [9]


def test_a_plan_with_it_is_of_a_schema_of_its_own(tmp_path: Path) -> None:
    for number, check in enumerate((key_space_detection(positions="mean"), key_space_detection())):
        path = tmp_path / f"{number}.safetensors"
        save_plan(plan(check), path)
        with safe_open(path, "np") as file:
            (entry,) = json.loads(file.metadata()["bakeout"])["interventions"]
        assert (entry["schema"], "query_start" in entry) == ((4, False) if number == 0 else (1, False))
    check = key_space_detection(positions="mean", query_start=(3, 4), query_end=(5,))
    save_plan(plan(check), tmp_path / "plan.safetensors")
    (read,) = load_plan(tmp_path / "plan.safetensors").interventions
    assert read.structure().keys() == check.structure().keys()
    assert read.settings() == check.settings()
    assert read.settings()["query_start"] == [3, 4]


def test_it_is_told() -> None:
    told = key_space_detection(positions="mean", query_start=(3, 4)).describe()
    assert told.summary.endswith("checked at mean")
    assert "needs the whole prompt in one run" in told.explanation
    assert ("mean key of", "the last tokens that begin with [3, 4]") in told.facts
    assert told.json["query_start"] == [3, 4]
    assert ("mean key of", "all tokens but a text's first") in key_space_detection(positions="mean").describe().facts


def test_its_regions_are_of_no_other_positions() -> None:
    mean, query = key_space_detection(positions="mean"), key_space_detection()
    assert mean.at_positions("mean").positions == "mean"
    others: list[tuple[KeySpaceDetection, Positions]] = [(mean, "query"), (mean, "every"), (query, "mean")]
    for check, positions in others:
        with pytest.raises(PlanError, match="are of the keys that positions"):
            check.at_positions(positions)
    with pytest.raises(PlanError, match="for the mean of keys alone"):
        key_space_detection(query_start=(3,))
    with pytest.raises(PlanError, match="is not a token"):
        key_space_detection(positions="mean", query_start=(-3,))
    with pytest.raises(PlanError, match="not in the model's vocabulary"):
        plan(key_space_detection(positions="mean", query_start=(10**6,)))


def test_checks_of_other_openings_are_not_joined() -> None:
    first = key_space_detection(positions="mean", query_start=(3,), skills=("a", "a", "b"))
    other = key_space_detection(positions="mean", query_start=(4,), skills=("c", "d", "d"))
    with pytest.raises(PlanError, match="differ in their query_start"):
        first.joined(other)
