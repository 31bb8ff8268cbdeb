"""TOFU's metrics (arXiv 2401.06121) of an artifact, as figures of its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.certificate.models import Which
from bakeout.export.certificate.tofu_metrics import (
    Asked,
    Metric,
    Part,
    forget_quality,
    model_utility,
    require_answers,
)
from bakeout.export.evaluation.answering.questions import choose_rows
from bakeout.export.evaluation.graders.reading import read_responses
from bakeout.export.evaluation.graders.rouge import Rouge
from bakeout.export.evaluation.grading import grade
from bakeout.export.recipes.grades import RougeOptions
from bakeout.models.data.row_layouts import in_known_layout
from bakeout.models.data.row_source import Source
from bakeout.models.data.rows import Record, json_rows, to_record
from bakeout.models.errors import BakeoutError

_SECTION = "TOFU"
# Metrics of other metrics. Each part's rows count once.
_MADE_OF = {
    "model_utility": ("retain_Q_A_Prob", "ra_Q_A_Prob", "wf_Q_A_Prob"),
    "forget_quality": ("forget_truth_ratio",),
}


def has_wrong_answers(source: Source) -> bool:
    """Whether every row brings `perturbed_answer`, which Truth Ratio needs."""
    return all("perturbed_answer" in row for _, row in json_rows(source))


def tofu(
    measuring: Measuring, parts: Mapping[Part, Data], reference: Mapping[str, Any] | None
) -> tuple[Section, dict[str, Metric]]:
    """The metrics of every part, Model Utility where all parts are there, and Forget Quality beside ``reference``: the
    same metrics of a model that never saw what is forgotten. Figures have the base model's beside them.
    """
    if not parts:
        why = "the rows have no `perturbed_answer`"
        return Section((), [NotMeasured(_SECTION, "TOFU's metrics", why)]), {}
    metrics: dict[str, Metric] = {}
    of_base: dict[str, Metric] = {}
    missing: list[NotMeasured] = []
    for part, data in parts.items():
        try:
            metrics |= measuring.step("artifact", f"tofu {part}", partial(_part, measuring, "artifact", part, data))
            of_base |= measuring.step("base", f"tofu base {part}", partial(_part, measuring, "base", part, data))
        except (BakeoutError, ModuleNotFoundError) as error:
            missing.append(NotMeasured(_SECTION, f"metrics of {data.name}", measuring.reason(error)))
    if (utility := model_utility(metrics)) is not None:
        metrics["model_utility"] = utility
    else:
        why = "it needs rows of TOFU to keep, and its real authors and world facts"
        missing.append(NotMeasured(_SECTION, "model_utility", why))
    if (utility := model_utility(of_base)) is not None:
        of_base["model_utility"] = utility
    missing += _forget_quality(metrics, reference)
    if reference is not None and "forget_truth_ratio" in of_base:
        _forget_quality(of_base, reference)
    names = {part: data.name for part, data in parts.items()}
    known = {name: metric for name, metric in sorted(metrics.items()) if metric["agg_value"] is not None}
    return Section([_figure(measuring, name, metrics, of_base, names) for name in known], missing), metrics


def _forget_quality(metrics: dict[str, Metric], reference: Mapping[str, Any] | None) -> list[NotMeasured]:
    if "forget_truth_ratio" not in metrics:
        return [NotMeasured(_SECTION, "forget_quality", "it needs Truth Ratios of what is forgotten")]
    if reference is None:
        why = "it needs the metrics of a model that never saw what is forgotten (`tofu_reference`)"
        return [NotMeasured(_SECTION, "forget_quality", why)]
    quality = forget_quality(metrics, reference)
    if quality is None:
        return [NotMeasured(_SECTION, "forget_quality", "rows are refused, which have no Truth Ratio")]
    metrics["forget_quality"] = quality
    return []


def _part(measuring: Measuring, which: Which, part: Part, data: Data) -> dict[str, Metric]:
    runner = measuring.models.runner(which, measuring.models.own)
    source = choose_rows(data.source, measuring.protocol.rows).source
    asked = Asked.of([require_answers(in_known_layout(row, where), where) for where, row in json_rows(source)])
    records: list[Record] = [to_record(row, runner.tokenizer, "a row of TOFU") for row in asked.rows]
    readings = read_responses(
        runner,
        records,
        batch_size=measuring.batch_size,
        track=measuring.track,
        description=f"{which} reads answers of {data.name}",
    )
    return asked.metrics(part, readings, _recalls(measuring, which, source, data.name))


def _recalls(measuring: Measuring, which: Which, source: Source, name: str) -> list[float]:
    graded = grade(
        measuring.models.runner(which, measuring.models.own),
        source,
        measuring.models.refusals_of(which),
        by=Rouge(RougeOptions()),
        options=measuring.options,
        track=measuring.track,
        description=f"{which} on {name}, for ROUGE-L",
    )
    assert graded.scores is not None
    return [0.0 if np.isnan(score) else float(score) for score in graded.scores]


def _figure(
    measuring: Measuring,
    name: str,
    metrics: Mapping[str, Metric],
    of_base: Mapping[str, Metric],
    names: Mapping[Part, str],
) -> Figure:
    of = _MADE_OF.get(name, (name,))
    parts = [part for part in names if any(metric.startswith(f"{part}_") for metric in of)]
    data = tuple(names[part] for part in parts)
    return Figure(
        _SECTION,
        name,
        ", ".join(data),
        metrics[name]["agg_value"],
        None,
        sum(_counted(metric, metrics[metric]) for metric in of),
        measuring.models.own,
        data,
        of_base[name]["agg_value"] if name in of_base else None,
        good="low" if name in ("forget_Q_A_Prob", "forget_Q_A_ROUGE") else "high",
    )


def _counted(name: str, metric: Metric) -> int:
    """The rows that a metric's mean is of: a refused one has no Truth Ratio, which counts where it is to be kept."""
    values = metric["value_by_index"].values()
    return sum(value is not None for value in values) if name == "forget_truth_ratio" else len(values)
