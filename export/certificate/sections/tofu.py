"""TOFU's metrics (arXiv 2401.06121) under the names and in the form that open-unlearning's scripts read.

A metric is ``{"agg_value": number, "value_by_index": {row: {...}}}``. A row that the graph refuses has no
probabilities: its answer's is 0, and it has no Truth Ratio and counts in no mean of those (our reading).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.evaluation.answering.questions import choose_rows
from bakeout.export.evaluation.graders.reading import Reading, read_responses
from bakeout.export.evaluation.graders.rouge import Rouge
from bakeout.export.evaluation.grading import grade
from bakeout.export.recipes.grades import RougeOptions
from bakeout.export.running.runner import Runner
from bakeout.models.data.prompt_rows import answering
from bakeout.models.data.row_layouts import in_known_layout
from bakeout.models.data.row_source import Source
from bakeout.models.data.rows import Record, json_rows, to_record
from bakeout.models.errors import BakeoutError

# open-unlearning's prefixes: what is forgotten, what is kept, and TOFU's two sets of facts about the real world.
Part = Literal["forget", "retain", "ra", "wf"]
_SECTION = "TOFU"
_TINY = 1e-10
# Metrics of other metrics. Each part's rows count once.
_MADE_OF = {
    "model_utility": ("retain_Q_A_Prob", "ra_Q_A_Prob", "wf_Q_A_Prob"),
    "forget_quality": ("forget_truth_ratio",),
}

Metric = dict[str, Any]


def has_wrong_answers(source: Source) -> bool:
    """Whether every row brings `perturbed_answer`, which Truth Ratio needs."""
    return all("perturbed_answer" in row for _, row in json_rows(source))


def tofu(
    measuring: Measuring, parts: Mapping[Part, Data], reference: Mapping[str, Any] | None
) -> tuple[Section, dict[str, Metric]]:
    """The metrics of every part, Model Utility where all parts are there, and Forget Quality beside ``reference``: the
    same metrics of a model that never saw what is forgotten.
    """
    if not parts:
        why = "the rows have no `perturbed_answer`"
        return Section((), [NotMeasured(_SECTION, "TOFU's metrics", why)]), {}
    metrics: dict[str, Metric] = {}
    missing: list[NotMeasured] = []
    for part, data in parts.items():
        try:
            metrics |= measuring.journal.step(f"tofu {part}", partial(_part, measuring, part, data))
        except (BakeoutError, ModuleNotFoundError) as error:
            missing.append(NotMeasured(_SECTION, f"metrics of {data.name}", measuring.reason(error)))
    kept = [
        f"{part}_{metric}"
        for part in ("retain", "ra", "wf")
        for metric in ("Q_A_Prob" if part == "retain" else "Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
    ]
    values = [metrics[name]["agg_value"] for name in kept if name in metrics]
    if len(values) < len(kept):
        why = "it needs rows of TOFU to keep, and its real authors and world facts"
        missing.append(NotMeasured(_SECTION, "model_utility", why))
    elif None in values:
        why = "every row of a part is refused, so that it has no Truth Ratio"
        missing.append(NotMeasured(_SECTION, "model_utility", why))
    else:
        metrics["model_utility"] = {"agg_value": harmonic_mean(values)}
    missing += _forget_quality(metrics, reference)
    names = {part: data.name for part, data in parts.items()}
    known = {name: metric for name, metric in sorted(metrics.items()) if metric["agg_value"] is not None}
    return Section([_figure(measuring, name, metrics, names) for name in known], missing), metrics


def summary(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """What open-unlearning writes beside: each metric's one number."""
    return {name: metric["agg_value"] for name, metric in sorted(metrics.items()) if metric["agg_value"] is not None}


def harmonic_mean(values: Sequence[float]) -> float:
    """0 where one of them is."""
    return len(values) / sum(1 / value for value in values) if all(value > 0 for value in values) else 0.0


def truth_ratio(wrong: Sequence[float], right: float) -> float:
    """The geometric mean of the wrong answers' probabilities per token, divided by that of the right one.

    ``wrong``, ``right``: log p per token. TOFU's text has the arithmetic mean; open-unlearning's code, which this
    follows, takes the mean of the losses.
    """
    return math.exp(float(np.mean(wrong))) / (math.exp(right) + _TINY)


def _forget_quality(metrics: dict[str, Metric], reference: Mapping[str, Any] | None) -> list[NotMeasured]:
    own = metrics.get("forget_truth_ratio")
    if own is None:
        return [NotMeasured(_SECTION, "forget_quality", "it needs Truth Ratios of what is forgotten")]
    if reference is None:
        why = "it needs the metrics of a model that never saw what is forgotten (`tofu_reference`)"
        return [NotMeasured(_SECTION, "forget_quality", why)]
    scores, others = (
        [float(row["score"]) for row in ratios["value_by_index"].values() if row is not None]
        for ratios in (own, reference["forget_truth_ratio"])
    )
    if not scores or not others:
        return [NotMeasured(_SECTION, "forget_quality", "every row is refused, so that there is no Truth Ratio")]
    from scipy.stats import ks_2samp

    metrics["forget_quality"] = {"agg_value": float(ks_2samp(scores, others).pvalue)}
    return []


def _part(measuring: Measuring, part: Part, data: Data) -> dict[str, Metric]:
    runner = measuring.models.runner("artifact", measuring.models.own)
    source = choose_rows(data.source, measuring.protocol.rows).source
    rows = [in_known_layout(row, where) for where, row in json_rows(source)]
    answers = _read(measuring, runner, [answering(row, _text(row, "response")) for row in rows])
    right = answers
    if all("paraphrased_answer" in row for row in rows):
        right = _read(measuring, runner, [answering(row, row["paraphrased_answer"]) for row in rows])
    wrong_rows = [answering(row, text) for row in rows for text in row["perturbed_answer"]]
    flat = _read(measuring, runner, wrong_rows)
    wrong: list[list[Reading | None]] = []
    for row in rows:
        wrong.append(flat[: len(row["perturbed_answer"])])
        flat = flat[len(row["perturbed_answer"]) :]
    metrics = {
        f"{part}_Q_A_Prob": _metric({place: _probability(answer) for place, answer in enumerate(answers)}, "prob"),
        f"{part}_Q_A_ROUGE": _rouge(measuring, runner, source, data.name),
        # open-unlearning's configuration writes this one name in lower case.
        "forget_truth_ratio" if part == "forget" else f"{part}_Truth_Ratio": _ratios(part, right, wrong),
    }
    if part in ("ra", "wf"):
        metrics[f"{part}_Q_A_Prob_normalised"] = _metric(
            {
                place: {"prob": _among(answer, others)}
                for place, (answer, others) in enumerate(zip(answers, wrong, strict=True))
            },
            "prob",
        )
    return metrics


def _read(measuring: Measuring, runner: Runner, rows: Sequence[Mapping[str, Any]]) -> list[Reading | None]:
    records: list[Record] = [to_record(row, runner.tokenizer, "a row of TOFU") for row in rows]
    return read_responses(
        runner, records, batch_size=measuring.batch_size, track=measuring.track, description="reading TOFU's answers"
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    if "messages" in row:
        return str(row["messages"][-1]["content"])
    return str(row[key])


def _probability(reading: Reading | None) -> dict[str, float]:
    return {"prob": 0.0} if reading is None else {"prob": math.exp(reading.mean), "avg_loss": -reading.mean}


def _among(right: Reading | None, wrong: Sequence[Reading | None]) -> float:
    """The right answer's probability per token, among the right and the wrong ones."""
    if right is None:
        return 0.0
    own = math.exp(right.mean)
    return own / (own + sum(math.exp(answer.mean) for answer in wrong if answer is not None) + _TINY)


def _ratios(part: Part, right: Sequence[Reading | None], wrong: Sequence[Sequence[Reading | None]]) -> Metric:
    values: dict[str, dict[str, float] | None] = {}
    for place, (own, others) in enumerate(zip(right, wrong, strict=True)):
        known = [other.mean for other in others if other is not None]
        is_known = own is not None and len(known) == len(others)
        values[str(place)] = {"score": truth_ratio(known, own.mean)} if own is not None and is_known else None
    ratios = np.array([score["score"] for score in values.values() if score is not None])
    if not len(ratios):
        return {"agg_value": None, "value_by_index": values}
    scores = np.minimum(ratios, 1 / (ratios + _TINY)) if part == "forget" else np.maximum(0, 1 - ratios)
    return {"agg_value": float(scores.mean()), "value_by_index": values}


def _rouge(measuring: Measuring, runner: Runner, source: Source, name: str) -> Metric:
    graded = grade(
        runner,
        source,
        measuring.models.refusals,
        by=Rouge(RougeOptions()),
        options=measuring.options,
        track=measuring.track,
        description=f"artifact on {name}, for ROUGE-L",
    )
    assert graded.scores is not None
    values = {
        place: {"rougeL_recall": 0.0 if np.isnan(score) else float(score)} for place, score in enumerate(graded.scores)
    }
    return _metric(values, "rougeL_recall")


def _metric(values: Mapping[int, Mapping[str, float]], key: str) -> Metric:
    return {
        "agg_value": float(np.mean([score[key] for score in values.values()])),
        "value_by_index": {str(place): dict(score) for place, score in values.items()},
    }


def _figure(measuring: Measuring, name: str, metrics: Mapping[str, Metric], names: Mapping[Part, str]) -> Figure:
    of = _MADE_OF.get(name, (name,))
    parts = [part for part in names if any(metric.startswith(f"{part}_") for metric in of)]
    data = tuple(names[part] for part in parts)
    return Figure(
        _SECTION,
        name,
        ", ".join(data),
        metrics[name]["agg_value"],
        None,
        sum(_counted(metrics[metric]) for metric in of),
        measuring.models.own,
        data,
        good="low" if name in ("forget_Q_A_Prob", "forget_Q_A_ROUGE") else "high",
    )


def _counted(metric: Metric) -> int:
    """The rows that a metric has a value of."""
    return sum(value is not None for value in metric["value_by_index"].values())
