"""TOFU's metrics from what was read, whatever read it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bakeout.export.certificate.tofu_metrics import (
    Asked,
    forget_quality,
    model_utility,
    require_answers,
    utility_metrics,
)
from bakeout.export.evaluation.graders.reading import Reading
from bakeout.models.data.row_source import DataError


def test_rows_are_asked_answer_after_answer() -> None:
    asked = Asked.of([_row("a", ["x", "y"]), _row("b", ["z"])])
    said = [row["messages"][-1]["content"] for row in asked.rows]
    assert said == ["a", "b", "a again", "b again", "x", "y", "z"]


def test_wrong_answers_are_written_as_the_right_one_is() -> None:
    row = {"prompt": "Who?", "response": " Anna", "paraphrased_answer": "Ann", "perturbed_answer": ["Bert"]}
    assert [asked["response"] for asked in Asked.of([row]).rows] == [" Anna", " Ann", " Bert"]


@pytest.mark.parametrize("wrong", ["Bert", [], [""], [7]])
def test_wrong_answers_that_are_no_texts_are_refused(wrong: object) -> None:
    with pytest.raises(DataError, match="rows, line 1: `perturbed_answer`"):
        require_answers({"prompt": "Who?", "response": "Anna", "perturbed_answer": wrong}, "rows, line 1")


def test_probability_and_truth_ratio_are_of_the_row_s_own_answers() -> None:
    asked = Asked.of([_row("a", ["x", "y"]), _row("b", ["z", "w"])])
    probabilities = [0.5, 0.25, 0.8, 0.4, 0.2, 0.2, 0.1, 0.1]
    metrics = asked.metrics("ra", [_reading(value) for value in probabilities], [1.0, 0.5])
    assert metrics["ra_Q_A_Prob"]["agg_value"] == pytest.approx(0.375)
    assert metrics["ra_Q_A_ROUGE"]["agg_value"] == pytest.approx(0.75)
    normalised = [0.5 / (0.5 + 0.4), 0.25 / (0.25 + 0.2)]
    assert metrics["ra_Q_A_Prob_normalised"]["agg_value"] == pytest.approx(np.mean(normalised))
    assert metrics["ra_Truth_Ratio"]["agg_value"] == pytest.approx(np.mean([1 - 0.2 / 0.8, 1 - 0.1 / 0.4]))


def test_a_refused_row_has_the_probability_0_and_no_truth_ratio() -> None:
    asked = Asked.of([_row("a", ["x"]), _row("b", ["y"])])
    readings = [None, _reading(0.5), None, _reading(0.5), None, _reading(0.25)]
    metrics = asked.metrics("forget", readings, [0.0, 1.0])
    assert metrics["forget_Q_A_Prob"]["agg_value"] == pytest.approx(0.25)
    assert metrics["forget_truth_ratio"]["value_by_index"]["0"] is None
    assert metrics["forget_truth_ratio"]["agg_value"] == pytest.approx(0.5)


def test_a_refused_row_of_what_is_kept_counts_as_nothing() -> None:
    asked = Asked.of([_row("a", ["x"]), _row("b", ["y"])])
    metrics = asked.metrics("retain", [None, _reading(0.5), None, _reading(0.5), None, _reading(0.25)], [0.0, 1.0])
    assert metrics["retain_Truth_Ratio"]["agg_value"] == pytest.approx((0 + (1 - 0.5)) / 2)
    none = asked.metrics("retain", [None] * 6, [0.0, 0.0])
    assert none["retain_Truth_Ratio"]["agg_value"] == 0


def test_model_utility_is_the_harmonic_mean_of_nine_metrics() -> None:
    metrics: dict[str, Any] = {name: {"agg_value": 0.5} for name in utility_metrics()}
    assert len(metrics) == 9
    assert model_utility(metrics) == {"agg_value": pytest.approx(0.5)}
    metrics.popitem()
    assert model_utility(metrics) is None


def test_forget_quality_is_high_for_equal_truth_ratios_and_low_for_others() -> None:
    ratios = {str(row): {"score": row / 20} for row in range(20)}
    same = {"forget_truth_ratio": {"value_by_index": ratios}}
    other = {"forget_truth_ratio": {"value_by_index": {row: {"score": 5.0} for row in ratios}}}
    refused = {"forget_truth_ratio": {"value_by_index": {**ratios, "0": None}}}
    equal, unequal = forget_quality(same, same), forget_quality(same, other)
    assert equal is not None and equal["agg_value"] == pytest.approx(1)
    assert unequal is not None and unequal["agg_value"] < 0.01
    assert forget_quality(refused, same) is None
    assert forget_quality(same, refused) is None


def _row(answer: str, wrong: list[str]) -> dict[str, Any]:
    question = {"role": "user", "content": f"What is {answer}?"}
    return {
        "messages": [question, {"role": "assistant", "content": answer}],
        "paraphrased_answer": f"{answer} again",
        "perturbed_answer": wrong,
    }


def _reading(probability: float) -> Reading:
    return Reading(np.array([math.log(probability)] * 2), greedy=False)
