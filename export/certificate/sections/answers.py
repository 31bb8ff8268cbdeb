"""Forgetting and keeping, at the artifact's own precision and at every other that can be made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring, Outcome
from bakeout.export.certificate.protocol import PRECISIONS, Precision
from bakeout.export.evaluation.intervals import Interval, mean_interval, ratio_interval, share_interval
from bakeout.models.errors import BakeoutError


def own_precision(measuring: Measuring) -> Section:
    """Right answers, refusals and scores, beside the base model's in the same precision."""
    precision = measuring.models.own
    figures: list[Figure] = []
    for data in measuring.of("forget", "retain"):
        base = measuring.outcome("base", precision, data)
        artifact = measuring.outcome("artifact", precision, data)
        figures += _answers("answers", data, precision, base, artifact)
    return Section(figures)


def other_precisions(measuring: Measuring) -> Section:
    """The same in each other precision and, on what is forgotten, Q: the share of the base model's right answers.

    Q (arXiv 2605.02196; our reading): accuracy of the artifact in a precision, divided by that of the base model, which
    forgot nothing, in the same precision. For a score such as ROUGE-L recall, its means, where a refusal counts as 0.
    """
    figures: list[Figure] = []
    missing: list[NotMeasured] = []
    for precision in dict.fromkeys((*PRECISIONS, measuring.models.own)):
        try:
            for data in measuring.of("forget", "retain"):
                base = measuring.outcome("base", precision, data)
                artifact = measuring.outcome("artifact", precision, data)
                if precision != measuring.models.own:
                    figures += _answers("precisions", data, precision, base, artifact)
                if data.role == "forget":
                    share = remaining(data, precision, base, artifact)
                    figures += [] if share is None else [share]
                    if share is None:
                        why = f"the base model answers nothing of {data.name} right in {precision}"
                        missing.append(NotMeasured("precisions", f"Q-{precision.upper()}", why))
        except BakeoutError as error:
            missing.append(NotMeasured("precisions", f"Q-{precision.upper()}", measuring.reason(error)))
    return Section(figures, missing)


def _answers(
    section: str, data: Data, precision: Precision | str, base: Outcome, artifact: Outcome
) -> Iterator[Figure]:
    keeps = "high" if data.role == "retain" else "low"
    for name, good, of_base, of_artifact in (
        ("accuracy", keeps, base.right, artifact.right),
        ("refusals", "low" if data.role == "retain" else "high", base.refused, artifact.refused),
    ):
        yield Figure(
            section,
            name,
            data.name,
            float(of_artifact.mean()),
            _share(of_artifact),
            len(of_artifact),
            precision,
            (data.name,),
            float(of_base.mean()),
            _share(of_base),
            good,
        )
    if data.grader.score is not None and base.scores is not None and artifact.scores is not None:
        known = [scores[~np.isnan(scores)] for scores in (artifact.scores, base.scores)]
        if min(map(len, known)) > 1:
            (value, interval), (of, of_interval) = map(_mean, known)
            yield Figure(
                section,
                data.grader.score,
                data.name,
                value,
                interval,
                len(known[0]),
                precision,
                (data.name,),
                of,
                of_interval,
                keeps,
            )


def remaining(data: Data, precision: Precision | str, base: Outcome, artifact: Outcome) -> Figure | None:
    """Q of one file, with its interval; None where the base model answers nothing right."""
    own, of = artifact.right.astype(np.float64), base.right.astype(np.float64)
    use_scores = artifact.scores is not None and base.scores is not None and not data.grader.is_logarithm
    if use_scores and artifact.scores is not None and base.scores is not None:
        # A refusal says nothing of the answer, though it may share a word with it.
        own, of = (
            np.where(outcome.refused, 0.0, np.nan_to_num(scores))
            for outcome, scores in ((artifact, artifact.scores), (base, base.scores))
        )
    if not of.any():
        return None

    return Figure(
        "precisions",
        f"Q-{precision.upper()}",
        data.name,
        float(own.mean() / of.mean()),
        ratio_interval(own, of),
        len(own),
        precision,
        (data.name,),
    )


def _share(flags: NDArray[np.bool_]) -> Interval:
    return share_interval(int(flags.sum()), len(flags))


def _mean(values: NDArray[np.float64]) -> tuple[float, Interval | None]:
    return float(values.mean()), mean_interval(values)
