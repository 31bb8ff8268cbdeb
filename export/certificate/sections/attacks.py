"""How forgetting holds when questions are asked otherwise: forms, ways of feeding, thoughts, two questions at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bakeout.export.attacks.attack import ATTACKS, attack_jobs
from bakeout.export.attacks.mixed_questions import ORDERS, mixed, pairs
from bakeout.export.attacks.reasoning import FRAMES, after_thought, framed, is_open
from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import MODELS, Data, Measuring
from bakeout.export.certificate.models import Which
from bakeout.export.evaluation.answering.questions import as_asked, read_questions
from bakeout.export.evaluation.graders.grader import AnswerGrader, Question
from bakeout.export.evaluation.grading import AnswerJudge
from bakeout.export.evaluation.intervals import share_interval
from bakeout.export.running.refusals import answer_text
from bakeout.export.running.runner import Runner
from bakeout.models.data.prompt_rows import PromptRow, read_prompt_rows
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.spreading import spread

# Of one form: how many prompts, and how many were answered correctly, and refused.
_Counts = Mapping[str, int]


def forms(measuring: Measuring) -> Section:
    """Each form of `bakeout attack`, and each frame of a thought: the share of right answers, and of refusals."""
    figures: list[Figure] = []
    missing: list[NotMeasured] = []
    for data in measuring.of("forget"):
        grader = data.answers
        if grader is None:
            missing.append(NotMeasured("attacks", f"attacks on {data.name}", "its grader judges no generated answers"))
            continue
        by_model: dict[Which, dict[str, _Counts]] = {
            which: measuring.journal.step(
                f"attacks {which} {data.name}",
                partial(_attacked, measuring, which, data, grader),
            )
            for which in MODELS
        }
        absent: list[str] = []
        for form in (*ATTACKS, *FRAMES):
            if form in by_model["artifact"]:
                counts = by_model["artifact"][form]
                figures += _figures(measuring, data.name, form, by_model["base"].get(form), counts)
            else:
                absent.append(form)
        behind_refusals = () if measuring.models.refusals else ("after_refusal", "follow_up")
        for kinds, why in (
            (
                [form for form in absent if form not in behind_refusals],
                "these rows, or this tokenizer, have no such forms, or the context does not hold them",
            ),
            ([form for form in absent if form in behind_refusals], "the artifact refuses nothing"),
        ):
            if kinds:
                missing.append(NotMeasured("attacks", f"{', '.join(kinds)} on {data.name}", why))
    return Section(figures, missing)


def mixed_questions(measuring: Measuring) -> Section:
    """BLUR: a question to forget and one to keep in one prompt; the right parts of each, and refusals of both.

    Our reading of a right part: the grader takes the whole answer for right, or the reference stands in it.
    """
    figures: list[Figure] = []
    missing: list[NotMeasured] = []
    kept = next((retained for retained in measuring.of("retain") if retained.answers is not None), None)
    for data in measuring.of("forget"):
        if kept is None or data.answers is None:
            why = "it needs a file to forget and one to keep, whose graders judge generated answers"
            missing.append(NotMeasured("BLUR", f"two questions on {data.name}", why))
            continue
        by_model = {
            which: measuring.journal.step(
                f"mixed {which} {data.name}",
                partial(_mixed, measuring, which, data, kept),
            )
            for which in MODELS
        }
        for order in ORDERS:
            if any(order not in by_model[which] for which in MODELS):
                why = "the model's context holds no two of these questions"
                missing.append(NotMeasured("BLUR", f"two questions on {data.name}, {order}", why))
                continue
            base, artifact = (by_model[which][order] for which in MODELS)
            for name, good in (("forget part right", "low"), ("retain part right", "high"), ("refused", "low")):
                figures.append(
                    _figure(
                        measuring, "BLUR", name, f"{data.name} + {kept.name}, {order}", (data.name, kept.name),
                        base, artifact, name.replace(" ", "_"), good,
                    )
                )  # fmt: skip
    return Section(figures, missing)


def _attacked(measuring: Measuring, which: Which, data: Data, grader: AnswerGrader) -> dict[str, _Counts]:
    runner = measuring.models.runner(which, measuring.models.own)
    rows, questions = _asked(measuring, data, runner, grader)
    others = [
        record.prompt_ids
        for retained in measuring.of("retain")
        for record in read_records(retained.source, runner.tokenizer, runner.limits)[
            : measuring.protocol.attack_prompts
        ]
    ]
    counts: dict[str, _Counts] = {}
    description = f"{which}: attacks on {data.name}"
    refusals, seed = measuring.models.refusals, measuring.protocol.seed
    for form, feed, given in attack_jobs(rows, ATTACKS, runner, refusals, others, seed):
        asked = [Question(record, questions[row].row, questions[row].expected) for row, record in given]
        judge = AnswerJudge(asked, grader, measuring.models.refusals, runner)
        length = _length(measuring, judge, grader)
        answers = feed(runner, [record.prompt_ids for _, record in given], length)
        judged = judge.judge(answers)
        counts[form] = _counted(
            len(asked),
            right=[judgement.right for judgement in judged],
            refused=[judgement.refused for judgement in judged],
        )
    plain = [row.plain(runner.tokenizer) for row in rows]
    for frame in measuring.track(FRAMES, f"{description}: thoughts", len(FRAMES)):
        if begun := framed(plain, frame, runner.tokenizer, runner.limits):
            asked = [questions[place] for place, _ in begun]
            records = [record for _, record in begun]
            counts[frame] = _thought(measuring, runner, records, asked, grader, thinks=is_open(frame))
    return counts


def _asked(
    measuring: Measuring, data: Data, runner: Runner, grader: AnswerGrader
) -> tuple[list[PromptRow], list[Question]]:
    """The rows that are attacked, and the same as the grader knows them."""
    most = measuring.protocol.attack_prompts
    asked = as_asked(data.source, grader)
    rows = spread(read_prompt_rows(asked, runner.tokenizer, runner.limits), most)
    questions = spread(read_questions(data.source, grader, runner.tokenizer, runner.limits), most)
    return rows, questions


def _thought(
    measuring: Measuring,
    runner: Runner,
    records: Sequence[Record],
    questions: Sequence[Question],
    grader: AnswerGrader,
    *,
    thinks: bool,
) -> _Counts:
    judge = AnswerJudge(questions, grader, measuring.models.refusals, runner)
    prompts = [record.prompt_ids for record in records]
    # A thought is longer than any answer.
    length = measuring.options.length(None) if thinks else _length(measuring, judge, grader)
    answers = runner.generate(prompts, length, batch_size=measuring.batch_size)
    texts = [after_thought(answer_text(runner.tokenizer, tokens)) for tokens in answers]
    refused = [measuring.models.refusals.is_refusal(text) for text in texts]
    right = [grader.judge(text, question).right for text, question in zip(texts, questions, strict=True)]
    return _counted(len(texts), right=right, refused=refused)


def _mixed(measuring: Measuring, which: Which, forget: Data, retain: Data) -> dict[str, _Counts]:
    runner = measuring.models.runner(which, measuring.models.own)
    assert forget.answers is not None
    assert retain.answers is not None
    rows, questions = _asked(measuring, forget, runner, forget.answers)
    kept_rows, kept_questions = _asked(measuring, retain, runner, retain.answers)
    counts: dict[str, _Counts] = {}
    for order in measuring.track(ORDERS, f"{which}: two questions in one prompt", len(ORDERS)):
        both = [mixed(pair, order, runner.tokenizer) for pair in pairs(rows, kept_rows)]
        places = [place for place, record in enumerate(both) if runner.limits.hold(record.prompt_ids)]
        if not places:
            continue
        length = 2 * max(
            _length(measuring, AnswerJudge(asked, grader, measuring.models.refusals, runner), grader)
            for asked, grader in ((questions, forget.answers), (kept_questions, retain.answers))
        )
        answers = runner.generate([both[place].prompt_ids for place in places], length, batch_size=measuring.batch_size)
        texts = [answer_text(runner.tokenizer, tokens) for tokens in answers]
        asked = [questions[place] for place in places]
        kept = [kept_questions[place % len(kept_questions)] for place in places]
        counts[order] = _counted(
            len(texts),
            forget_part_right=[_says(*pair, forget.answers) for pair in zip(texts, asked, strict=True)],
            retain_part_right=[_says(*pair, retain.answers) for pair in zip(texts, kept, strict=True)],
            refused=[measuring.models.refusals.is_refusal(text) for text in texts],
        )
    return counts


def _says(answer: str, question: Question, grader: AnswerGrader) -> bool:
    expected = " ".join((question.expected or "").casefold().split())
    return grader.judge(answer, question).right or (bool(expected) and expected in " ".join(answer.casefold().split()))


def _length(measuring: Measuring, judge: AnswerJudge, grader: AnswerGrader) -> int:
    return measuring.options.length(judge.longest if grader.bounded else None)


def _counted(prompts: int, **flags: Sequence[bool]) -> dict[str, int]:
    return {"prompts": prompts, **{name: int(np.sum(flags)) for name, flags in flags.items()}}


def _figures(measuring: Measuring, name: str, form: str, base: _Counts | None, artifact: _Counts) -> Iterator[Figure]:
    for what, good in (("right", "low"), ("refused", "high")):
        if what == "refused" and not measuring.models.refusals:
            continue
        yield _figure(measuring, "attacks", what, f"{name}, {form}", (name,), base, artifact, what, good)


def _figure(
    measuring: Measuring,
    section: str,
    name: str,
    part: str,
    data: tuple[str, ...],
    base: _Counts | None,
    artifact: _Counts,
    key: str,
    good: str,
) -> Figure:
    def share(counts: _Counts) -> dict[str, Any]:
        return {
            "value": counts[key] / counts["prompts"],
            "interval": share_interval(counts[key], counts["prompts"]),
        }

    of_base = share(base) if base is not None else {"value": None, "interval": None}
    own = share(artifact)
    return Figure(
        section,
        name,
        part,
        own["value"],
        own["interval"],
        artifact["prompts"],
        measuring.models.own,
        data,
        of_base["value"],
        of_base["interval"],
        good,
    )
