"""TOFU's metrics (arXiv 2401.06121) under the names and in the form that open-unlearning's scripts read.

A metric is ``{"agg_value": number, "value_by_index": {row: {...}}}``. A row that is refused has no probabilities (our
reading): its answer's is 0, and it has no Truth Ratio. Of what is kept it counts as 0 in the mean of those, of what is
forgotten it counts in no mean. Nothing here knows what read the answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bakeout.export.evaluation.graders.reading import Reading
from bakeout.models.data.prompt_rows import answering
from bakeout.models.data.row_source import DataError

# open-unlearning's prefixes: what is forgotten, what is kept, and TOFU's two sets of facts about the real world.
Part = Literal["forget", "retain", "ra", "wf"]
Metric = dict[str, Any]
Row = Mapping[str, Any]
_KEPT: tuple[Part, ...] = ("retain", "ra", "wf")
_TINY = 1e-10


@dataclass(frozen=True)
class Asked:
    """Rows of one part as they are read: row after row the answer, the right one in other words, and the wrong ones.

    ``rows``: every answer behind its question, in that order; ``wrong``: how many wrong answers each row has.
    """

    rows: list[dict[str, Any]]
    wrong: list[int]
    paraphrased: bool

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Asked:
        """Of rows in a layout of ``rows``, with `perturbed_answer` and, in all or none, `paraphrased_answer`.

        Both are written behind the question as the answer is: behind a space where that is.
        """
        paraphrased = all("paraphrased_answer" in row for row in rows)
        asked = [answering(row, _answer(row)) for row in rows]
        if paraphrased:
            asked += [answering(row, _space(row) + row["paraphrased_answer"]) for row in rows]
        asked += [answering(row, _space(row) + text) for row in rows for text in row["perturbed_answer"]]
        return cls(asked, [len(row["perturbed_answer"]) for row in rows], paraphrased)

    def metrics(self, part: Part, readings: Sequence[Reading | None], recalls: Sequence[float]) -> dict[str, Metric]:
        """The metrics of ``part`` from the readings of ``rows``, None where one is refused, and each row's ROUGE-L."""
        count = len(self.wrong)
        answers = readings[:count]
        right = readings[count : 2 * count] if self.paraphrased else answers
        others = list(readings[(2 if self.paraphrased else 1) * count :])
        wrong = [[others.pop(0) for _ in range(number)] for number in self.wrong]
        metrics = {
            f"{part}_Q_A_Prob": _metric([_probability(answer) for answer in answers], "prob"),
            f"{part}_Q_A_ROUGE": _metric([{"rougeL_recall": recall} for recall in recalls], "rougeL_recall"),
            # open-unlearning's configuration writes this one name in lower case.
            "forget_truth_ratio" if part == "forget" else f"{part}_Truth_Ratio": _ratios(part, right, wrong),
        }
        if part in ("ra", "wf"):
            among = [{"prob": _among(answer, others)} for answer, others in zip(answers, wrong, strict=True)]
            metrics[f"{part}_Q_A_Prob_normalised"] = _metric(among, "prob")
        return metrics


def require_answers(row: Row, where: str) -> Row:
    """The row. Raises ``DataError`` unless its `perturbed_answer` are texts, and its `paraphrased_answer` is one."""
    wrong = row["perturbed_answer"]
    if not (isinstance(wrong, list) and wrong and all(isinstance(text, str) and text for text in wrong)):
        raise DataError(f"{where}: `perturbed_answer` is no list of texts.", "Give a list of wrong answers.")
    if not isinstance(row.get("paraphrased_answer", ""), str):
        raise DataError(f"{where}: `paraphrased_answer` is no text.", "Give the right answer in other words.")
    return row


def utility_metrics() -> list[str]:
    """The nine metrics whose harmonic mean Model Utility is."""
    return [
        f"{part}_{metric}"
        for part in _KEPT
        for metric in ("Q_A_Prob" if part == "retain" else "Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
    ]


def model_utility(metrics: Mapping[str, Metric]) -> Metric | None:
    """Model Utility; None where one of its metrics is missing."""
    values = [metrics[name]["agg_value"] for name in utility_metrics() if name in metrics]
    if len(values) < len(utility_metrics()):
        return None
    return {"agg_value": harmonic_mean(values)}


def forget_quality(metrics: Mapping[str, Metric], reference: Mapping[str, Any]) -> Metric | None:
    """The p value of Kolmogorov and Smirnov's test between the Truth Ratios of what is forgotten and ``reference``'s.

    None where a row of either is refused: the few that are not would stand for all.
    """
    from scipy.stats import ks_2samp

    rows, others = (
        list(ratios["value_by_index"].values())
        for ratios in (metrics["forget_truth_ratio"], reference["forget_truth_ratio"])
    )
    if None in rows + others:
        return None
    scores, their_scores = ([float(row["score"]) for row in of] for of in (rows, others))
    return {"agg_value": float(ks_2samp(scores, their_scores).pvalue)}


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


def _answer(row: Row) -> str:
    return str(row["messages"][-1]["content"] if "messages" in row else row["response"])


def _space(row: Row) -> str:
    return " " if "messages" not in row and _answer(row)[:1] == " " else ""


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
    if part != "forget":
        return {"agg_value": float(np.maximum(0, 1 - ratios).sum() / len(values)), "value_by_index": values}
    scores = np.minimum(ratios, 1 / (ratios + _TINY))
    return {"agg_value": float(scores.mean()) if len(scores) else None, "value_by_index": values}


def _metric(values: Sequence[Mapping[str, float]], key: str) -> Metric:
    return {
        "agg_value": float(np.mean([score[key] for score in values])),
        "value_by_index": {str(place): dict(score) for place, score in enumerate(values)},
    }
