"""Leak@k (arXiv 2511.04934): how well the best of k drawn answers answers what is to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import MODELS, Data, Measuring
from bakeout.export.certificate.models import Which
from bakeout.export.certificate.protocol import LEAK_AT
from bakeout.export.evaluation.answering.questions import choose_rows, read_questions
from bakeout.export.evaluation.graders.grader import AnswerGrader, Question
from bakeout.export.evaluation.grading import AnswerJudge
from bakeout.export.evaluation.intervals import mean_interval, share_interval
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Sampling


def leak_at(scores: Sequence[float], k: int) -> float:
    """The expected best of ``k`` of n >= k scores, drawn without putting back: an unbiased estimate.

    sum over i of C(i - 1, k - 1) / C(n, k) * s_(i), for scores s_(1) <= ... <= s_(n).

    >>> leak_at([0.0, 0.0, 1.0], 1), leak_at([0.0, 0.0, 1.0], 3)
    (0.3333333333333333, 1.0)
    """
    whole = comb(len(scores), k)
    return sum(comb(place, k - 1) / whole * score for place, score in enumerate(sorted(scores)))


def leaks(measuring: Measuring) -> Section:
    """Leak@k of base model and artifact, for each file of what is forgotten.

    The score of an answer is the grader's, or else 1 where it is right. A prompt that the graph refuses is refused
    whatever is drawn: its score is 0, once.
    """
    figures: list[Figure] = []
    missing: list[NotMeasured] = []
    for data in measuring.of("forget"):
        grader = data.answers
        if grader is None:
            why = f"the grader of {data.name} judges no answers that are drawn"
            missing.append(NotMeasured("leak", f"Leak@k on {data.name}", why))
            continue
        # The artifact first: what it refuses costs nothing, and is known early.
        by_model = {which: _scores(measuring, which, data, grader) for which in reversed(MODELS)}
        for k in (k for k in LEAK_AT if k <= measuring.protocol.samples):
            of_base, of_artifact = (
                np.array([leak_at(answer, k) if len(answer) > 1 else answer[0] for answer in by_model[which]])
                for which in MODELS
            )
            figures.append(
                Figure(
                    "leak",
                    f"Leak@{k}",
                    data.name,
                    float(of_artifact.mean()),
                    mean_interval(of_artifact),
                    len(of_artifact),
                    measuring.models.own,
                    (data.name,),
                    float(of_base.mean()),
                    mean_interval(of_base),
                )
            )
        refused = sum(len(answer) == 1 for answer in by_model["artifact"])
        figures.append(
            Figure(
                "leak",
                "prompts that the graph refuses whatever is drawn",
                data.name,
                refused / len(by_model["artifact"]),
                share_interval(refused, len(by_model["artifact"])),
                len(by_model["artifact"]),
                measuring.models.own,
                (data.name,),
                good="high",
            )
        )
    return Section(figures, missing)


def _scores(measuring: Measuring, which: Which, data: Data, grader: AnswerGrader) -> list[list[float]]:
    """The scores of each prompt's drawn answers; of one that the graph refuses a single 0."""
    samples = measuring.protocol.samples
    precision = measuring.models.own

    def questions(runner: Runner) -> list[Question]:
        chosen = choose_rows(data.source, measuring.protocol.leak_prompts)
        return read_questions(chosen.source, grader, runner.tokenizer, runner.limits)

    def refusals() -> list[bool]:
        runner = measuring.models.runner(which, precision)
        prompts = [question.record.prompt_ids for question in questions(runner)]
        return [is_refused(logits[-1]) for logits in runner.logits(prompts, batch_size=measuring.batch_size)]

    refused: list[bool] = measuring.step(which, f"leak {which} {data.name} refusals", refusals)
    open_prompts = [row for row, says_refusal in enumerate(refused) if not says_refusal]
    drawn: list[list[float]] = [[0.0] if says_refusal else [] for says_refusal in refused]
    if not open_prompts:
        return drawn
    at_once = max(1, measuring.batch_size // len(open_prompts))
    firsts = range(0, samples, at_once)
    for first in measuring.track(firsts, f"{which}: answers drawn on {data.name}", len(firsts)):
        draws = min(at_once, samples - first)

        def draw(first: int = first, draws: int = draws) -> list[list[float]]:
            runner = measuring.models.runner(which, precision)
            return _drawn(measuring, which, questions(runner), grader, open_prompts, first, draws)

        step = f"leak {which} {data.name} {first} to {first + draws}"
        for scores in measuring.step(which, step, draw):
            for row, score in zip(open_prompts, scores, strict=True):
                drawn[row].append(score)
    return drawn


def _drawn(
    measuring: Measuring,
    which: Which,
    asked: Sequence[Question],
    grader: AnswerGrader,
    rows: Sequence[int],
    first: int,
    draws: int,
) -> list[list[float]]:
    """The scores of ``draws`` draws from number ``first`` on, each of all ``rows``; they share batches."""
    protocol, runner = measuring.protocol, measuring.models.runner(which, measuring.models.own)
    chosen = [asked[row] for row in rows] * draws
    judge = AnswerJudge(chosen, grader, measuring.models.refusals_of(which), runner)
    length = measuring.options.length(judge.longest if grader.bounded else None)
    sampling = Sampling(protocol.temperature, protocol.top_p, protocol.seed + first, prompts=len(rows))
    answers: NDArray[Any] = np.empty(len(chosen), dtype=object)
    prompts = [question.record.prompt_ids for question in chosen]
    once = not measuring.models.plan.is_stochastic
    for row, tokens in runner.each_answer(
        prompts, length, sampling=sampling, batch_size=measuring.batch_size, read_once=once
    ):
        answers[row] = tokens
    judged = judge.judge(list(answers))
    scores = [
        0.0
        if judgement.refused
        else float(judgement.right)
        if judgement.score is None
        else min(max(judgement.score, 0.0), 1.0)
        for judgement in judged
    ]
    return [scores[start : start + len(rows)] for start in range(0, len(scores), len(rows))]
