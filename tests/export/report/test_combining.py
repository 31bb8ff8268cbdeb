"""Evaluations on one page: of its artifacts alone, and measured in one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.evaluation.rows import BASE, DataInput, Evaluation, Inputs, Row, TextRow
from bakeout.export.report.combining import combined
from bakeout.models.errors import BakeoutError

ONE, TWO, OTHER = "1" * 64, "2" * 64, "3" * 64
FIRST, SECOND = Path("first.json"), Path("second.json")
EXACT: Mapping[str, Any] = {"grade": {"exact": {}}}


def _evaluation(artifact: str = "one", digest: str = ONE, *, accuracy: float = 0.1, **row: Any) -> Evaluation:
    """An artifact beside the base model on 40 rows of ``math``; ``row``: what differs in both rows."""
    base = replace(Row(BASE, "math", 40, 0.95, 0.0, available=400), **row)
    return Evaluation(
        (base, replace(base, model=artifact, accuracy=accuracy)),
        (TextRow(artifact, "prose", 40, 0, 12.5),),
        inputs=Inputs({artifact: digest}, {"math": DataInput(OTHER, EXACT)}, {"prose": OTHER}),
    )


def _with_data(digest: str = OTHER, how: Mapping[str, Any] = EXACT, text: str = OTHER) -> Evaluation:
    inputs = Inputs({"two": TWO}, {"math": DataInput(digest, how)}, {"prose": text})
    return replace(_evaluation("two", TWO), inputs=inputs)


def _of_earlier_version(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, inputs=None)


def _refusal(evaluations: Mapping[Path, Evaluation], artifacts: Mapping[str, str]) -> str:
    with pytest.raises(BakeoutError) as caught:
        combined(evaluations, artifacts)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.remedy
    return caught.value.cause


def test_artifacts_that_were_measured_alike_stand_side_by_side() -> None:
    both = combined({FIRST: _evaluation(), SECOND: _evaluation("two", TWO, accuracy=0.2)}, {"one": ONE, "two": TWO})
    assert [(row.model, row.accuracy) for row in both.rows] == [(BASE, 0.95), ("one", 0.1), (BASE, 0.95), ("two", 0.2)]
    assert [row.model for row in both.texts] == ["one", "two"]


@pytest.mark.parametrize(
    ("second", "difference"),
    [
        (_evaluation("two", TWO, prompts=10), "40 of 400 prompts and 10 of 400 prompts"),
        (_evaluation("two", TWO, available=500), "40 of 400 prompts and 40 of 500 prompts"),
        (_evaluation("two", TWO, grade="contains"), "graded exact and contains"),
        (_with_data(digest=TWO), "files with sha256 333333333333 and 222222222222"),
        (_with_data(how={**EXACT, "temperature": 1}), 'and {"grade": {"exact": {}}, "temperature": 1}'),
        (replace(_evaluation("two", TWO), texts=(TextRow("two", "prose", 10, 0, 9.0),)), "40 texts and 10 texts"),
        (_with_data(text=TWO), "measured prose differently: files with sha256"),
    ],
    ids=["prompts", "available", "grader", "file", "decoding", "texts", "file of text"],
)
def test_figures_that_cannot_be_compared_are_refused(second: Evaluation, difference: str) -> None:
    for evaluations in ({FIRST: _evaluation(), SECOND: second}, {SECOND: _evaluation(), FIRST: second}):
        cause = _refusal(evaluations, {"one": ONE, "two": TWO})
        assert difference in cause
        assert all(str(path) in cause for path in evaluations)


def test_a_base_model_of_two_figures_is_refused() -> None:
    second = _evaluation("two", TWO)
    second = replace(second, rows=(replace(second.rows[0], accuracy=0.5), second.rows[1]))
    cause = _refusal({FIRST: _evaluation(), SECOND: second}, {"one": ONE, "two": TWO})
    assert "base with 95.0% correct, 0.0% refused and with 50.0% correct" in cause


def test_a_stored_base_figure_may_be_of_fewer_rows() -> None:
    """As `evaluate` gives it beside an artifact that it measures on all rows."""
    first, second = _evaluation(), _evaluation("two", TWO)
    first, second = (replace(each, rows=(replace(each.rows[0], prompts=10), each.rows[1])) for each in (first, second))
    assert len(combined({FIRST: first, SECOND: second}, {"one": ONE, "two": TWO}).rows) == 4


def test_files_of_earlier_versions_are_compared_by_grade_and_count() -> None:
    artifacts = {"one": ONE, "two": TWO}
    second = _evaluation("two", TWO)
    assert combined({FIRST: _of_earlier_version(_evaluation()), SECOND: second}, artifacts).rows
    unknown = _of_earlier_version(_evaluation("two", TWO, available=None))
    assert combined({FIRST: _evaluation(), SECOND: unknown}, artifacts).rows
    for change in ({"prompts": 10}, {"grade": "contains"}):
        other = _of_earlier_version(_evaluation("two", TWO, **change))
        assert "differently" in _refusal({FIRST: _of_earlier_version(_evaluation()), SECOND: other}, artifacts)


def test_another_artifact_of_the_same_name_is_refused() -> None:
    assert "first.json measured another model called one (content sha256 333333333333)" in _refusal(
        {FIRST: _evaluation("one", OTHER)}, {"one": ONE}
    )
    assert "called p/one (" in _refusal({FIRST: _evaluation("p/one", OTHER)}, {"one": ONE})
    no_artifact = replace(_evaluation(), inputs=Inputs({}, {}, {}))
    assert "called one (not an artifact)" in _refusal({FIRST: no_artifact}, {"one": ONE})


def test_an_evaluation_of_no_reported_artifact_is_refused() -> None:
    evaluations = {FIRST: _evaluation(), SECOND: _evaluation("other", OTHER)}
    expected = "second.json holds no row of one, but of other."
    assert _refusal(evaluations, {"one": ONE}) == expected
    earlier = {path: _of_earlier_version(evaluation) for path, evaluation in evaluations.items()}
    assert _refusal(earlier, {"one": ONE}) == expected
    assert "but of no artifact" in _refusal({FIRST: Evaluation((), ())}, {"one": ONE})


def test_an_artifact_is_known_by_its_content_wherever_it_lay() -> None:
    """Two directories of one name, evaluated one by one; and a third model beside one of them."""
    artifacts = {"x/art": ONE, "y/art": TWO}
    both = combined({FIRST: _evaluation("art"), SECOND: _evaluation("art", TWO, accuracy=0.2)}, artifacts)
    assert {row.model: row.accuracy for row in both.rows} == {BASE: 0.95, "x/art": 0.1, "y/art": 0.2}
    beside = _evaluation("p/art")
    assert beside.inputs is not None
    beside = replace(
        beside,
        rows=(*beside.rows, replace(beside.rows[1], model="q/art")),
        inputs=replace(beside.inputs, artifacts={"p/art": ONE, "q/art": OTHER}),
    )
    assert [row.model for row in combined({FIRST: beside}, {"art": ONE}).rows] == [BASE, "art", "q/art"]


def test_models_beside_the_artifact_are_not_taken_for_each_other() -> None:
    def beside(digest: str) -> Evaluation:
        evaluation = _evaluation()
        assert evaluation.inputs is not None
        rows = *evaluation.rows, replace(evaluation.rows[1], model="beside")
        return replace(
            evaluation, rows=rows, inputs=replace(evaluation.inputs, artifacts={"one": ONE, "beside": digest})
        )

    assert combined({FIRST: beside(TWO), SECOND: beside(TWO)}, {"one": ONE}).rows
    cause = _refusal({FIRST: beside(TWO), SECOND: beside(OTHER)}, {"one": ONE})
    assert cause == "first.json and second.json measured two different models called beside."


def test_files_of_earlier_versions_are_read_by_the_directorys_name() -> None:
    earlier = _of_earlier_version(_evaluation("out/one"))
    assert combined({FIRST: earlier}, {"one": ONE}).rows == earlier.rows
