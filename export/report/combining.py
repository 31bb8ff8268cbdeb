"""Evaluations on one page: only those that measured its artifacts, and all of them in one way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, combinations, product
from pathlib import Path
from typing import TypeVar

from bakeout.export.evaluation.rows import BASE, Evaluation, Row, TaskRow, TextRow
from bakeout.models.errors import BakeoutError

AnyRow = TypeVar("AnyRow", Row, TextRow, TaskRow)
Measured = TypeVar("Measured", Row, TextRow)


def combined(evaluations: Mapping[Path, Evaluation], artifacts: Mapping[str, str]) -> Evaluation:
    """The rows of all evaluations, with the page's names for its artifacts.

    ``artifacts``: the page's, as name to ``manifest.content_digest``. Raises ``BakeoutError`` for an evaluation of
    other artifacts, and for two whose figures cannot stand side by side.
    """
    named = {path: _as_on_page(path, evaluation, artifacts) for path, evaluation in evaluations.items()}
    for (path, one), (other_path, other) in combinations(named.items(), 2):
        if namesakes := _namesakes(one, other):
            raise BakeoutError(
                f"{path} and {other_path} measured two different models called {namesakes[0]}.",
                "Evaluate them together, or write separate reports.",
            )
        for data, differences in _differences(one, other):
            raise BakeoutError(
                f"{path} and {other_path} measured {data} differently: {'; '.join(differences)}.",
                "Evaluate all artifacts together, or at least on the same rows by the same grader, or write separate "
                "reports.",
            )
    return Evaluation(
        tuple(row for evaluation in named.values() for row in evaluation.rows),
        tuple(row for evaluation in named.values() for row in evaluation.texts),
        tuple(row for evaluation in named.values() for row in evaluation.tasks),
    )


def measured_models(evaluation: Evaluation) -> list[str]:
    """Every model but the base, in the order of the rows."""
    rows: Iterable[Row | TextRow | TaskRow] = chain(evaluation.rows, evaluation.texts, evaluation.tasks)
    return list(dict.fromkeys(row.model for row in rows if row.model != BASE))


def last_names(names: Iterable[str]) -> set[str]:
    """The names of the directories alone, without those above them."""
    return {Path(name).name for name in names}


def _as_on_page(path: Path, evaluation: Evaluation, artifacts: Mapping[str, str]) -> Evaluation:
    models = measured_models(evaluation)
    if evaluation.inputs is None:
        if not last_names(models) & last_names(artifacts):
            raise _of_others(path, models, artifacts)
        return evaluation
    digests = {model: evaluation.inputs.artifacts.get(model, "") for model in models}
    _require_no_namesake(path, digests, artifacts)
    names = {digest: name for name, digest in artifacts.items()}
    if not names.keys() & digests.values():
        raise _of_others(path, models, artifacts)
    on_page = {model: names.get(digest, model) for model, digest in digests.items()}
    return replace(
        evaluation,
        inputs=replace(evaluation.inputs, artifacts={on_page[model]: digest for model, digest in digests.items()}),
        rows=_renamed(evaluation.rows, on_page),
        texts=_renamed(evaluation.texts, on_page),
        tasks=_renamed(evaluation.tasks, on_page),
    )


def _require_no_namesake(path: Path, digests: Mapping[str, str], artifacts: Mapping[str, str]) -> None:
    """Refuse another model of the name of an artifact that was not measured. ``digests``: "" of what is no artifact."""
    lacking = last_names(name for name, digest in artifacts.items() if digest not in digests.values())
    for model, digest in digests.items():
        if digest not in artifacts.values() and (model in artifacts or Path(model).name in lacking):
            told = f"content sha256 {digest[:12]}" if digest else "not an artifact"
            raise BakeoutError(
                f"{path} measured another model called {model} ({told}) than the artifact reported on.",
                "Evaluate this artifact, or name the one that was evaluated.",
            )


def _namesakes(one: Evaluation, other: Evaluation) -> list[str]:
    first, second = (file.inputs.artifacts if file.inputs else {} for file in (one, other))
    return [model for model, digest in first.items() if second.get(model, digest) != digest]


def _of_others(path: Path, models: Iterable[str], artifacts: Iterable[str]) -> BakeoutError:
    return BakeoutError(
        f"{path} holds no row of {' or '.join(artifacts)}, but of {', '.join(models) or 'no artifact'}.",
        "Evaluate this artifact, or name the one that was evaluated.",
    )


def _renamed(rows: Iterable[AnyRow], names: Mapping[str, str]) -> tuple[AnyRow, ...]:
    return tuple(replace(row, model=names.get(row.model, row.model)) for row in rows)


def _differences(one: Evaluation, other: Evaluation) -> Iterator[tuple[str, list[str]]]:
    """What differs between figures on data of one name, for each name where something does.

    A base model's row is compared with a base model's: stored ones may be of fewer prompts than an artifact's.
    """
    for row, another in _pairs(one.rows, other.rows):
        if differences := [*_of_rows(row, another, one, other)]:
            yield row.data, differences
    for text, other_text in _pairs(one.texts, other.texts):
        if differences := [*_of_texts(text, other_text, one, other)]:
            yield text.data, differences


def _pairs(rows: Iterable[Measured], others: Iterable[Measured]) -> Iterator[tuple[Measured, Measured]]:
    for row, other in product(rows, others):
        if row.data == other.data and (row.model == BASE) == (other.model == BASE):
            yield row, other


def _of_rows(row: Row, another: Row, one: Evaluation, other: Evaluation) -> Iterator[str]:
    first, second = (file.inputs and file.inputs.data.get(row.data) for file in (one, other))
    available = {count for count in (row.available, another.available) if count is not None}
    if first and second and first.digest != second.digest:
        yield _digests(first.digest, second.digest)
    if row.prompts != another.prompts or len(available) > 1:
        yield f"{row.asked} and {another.asked}"
    if row.grade != another.grade:
        yield f"graded {row.grade} and {another.grade}"
    elif first and second and first.how != second.how:
        yield f"answered and graded by {_json(first.how)} and {_json(second.how)}"
    if row.model == another.model and (row.accuracy, row.refusals) != (another.accuracy, another.refusals):
        yield f"{row.model} with {_shares(row)} and with {_shares(another)}"


def _of_texts(row: TextRow, another: TextRow, one: Evaluation, other: Evaluation) -> Iterator[str]:
    first, second = (file.inputs and file.inputs.texts.get(row.data) for file in (one, other))
    if first and second and first != second:
        yield _digests(first, second)
    if row.texts != another.texts:
        yield f"{row.texts} texts and {another.texts} texts"
    if row.model == another.model and (row.perplexity, row.refused) != (another.perplexity, another.refused):
        yield f"{row.model} with two perplexities"


def _digests(one: str, other: str) -> str:
    return f"files with sha256 {one[:12]} and {other[:12]}"


def _shares(row: Row) -> str:
    return f"{row.accuracy:.1%} correct, {row.refusals:.1%} refused"


def _json(how: Mapping[str, object]) -> str:
    return json.dumps(how, sort_keys=True)
