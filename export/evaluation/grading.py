"""A model's answers to some rows, judged: right, wrong, cut off or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.evaluation.answering.answer_file import AnswerFile, answer_key
from bakeout.export.evaluation.answering.pace import paced
from bakeout.export.evaluation.answering.questions import Chosen, choose_rows, read_questions
from bakeout.export.evaluation.graders.grader import AnswerGrader, Grader, Question, ReadingGrader, Verdict
from bakeout.export.evaluation.graders.registry import make_grader
from bakeout.export.evaluation.intervals import Interval, bootstrap, mean_interval, ratio_interval
from bakeout.export.evaluation.rows import Row, Score
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.recipes.grades import EXACT
from bakeout.export.running.genai_runner import AnyRunner, GenaiRunner, showing_logits
from bakeout.export.running.refusals import Refusals, answer_text
from bakeout.export.running.sampling import Sampling
from bakeout.graph_passes.graph.graph_file import data_files, load_graph
from bakeout.models.data.prompt_rows import unlike_chats
from bakeout.models.data.row_source import Source
from bakeout.models.files.hashing import hash_files
from bakeout.models.progress import Track, untracked

_LOG = logging.getLogger("bakeout")
ALL_ROWS = EvaluateOptions(rows="all")
EXACT_GRADER = make_grader(EXACT)


@dataclass(frozen=True, eq=False)
class Graded:
    """A model's answers to some rows, in their order: bool [rows] each; what is none of the three is wrong.

    ``scores``: float64 [rows], NaN for rows that have none; None where the grader gives none. ``how``: the grader, and
    how answers were generated, as JSON; ``source``: the rows, out of ``available``.
    """

    correct: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    cut_off: NDArray[np.bool_]
    scores: NDArray[np.float64] | None
    grader: Grader
    how: Mapping[str, Any]
    source: Source
    available: int

    def row(self, model: str, data: str) -> Row:
        """The shares of all outcomes, and the mean score."""
        return Row(
            model,
            data,
            len(self.correct),
            float(self.correct.mean()),
            float(self.refused.mean()),
            cut_off=float(self.cut_off.mean()),
            available=self.available,
            grade=next(iter(self.how["grade"])),
            score=self._score(),
        )

    def beside(self, base: Graded) -> Score | None:
        """The score beside the base model's on the same rows, over those that have one from both."""
        if self.scores is None or base.scores is None:
            return self._score()
        own, others = self.scores, base.scores
        both = np.flatnonzero(~np.isnan(own) & ~np.isnan(others))
        score = self._score()
        if score is None or len(both) < 2:
            return score

        own, others = own[both], others[both]
        interval: Interval | None
        if self.grader.is_logarithm:
            logarithms = own - others
            value = float(np.exp(logarithms.mean()))
            interval = bootstrap(len(both), lambda chosen: float(np.exp(logarithms[chosen].mean())))
        else:
            of = float(others.mean())
            value = float(own.mean()) / of if of else float("nan")
            interval = ratio_interval(own, others)
        if interval is None or not np.isfinite([value, *interval]).all():
            return score
        return Score(score.name, score.mean, score.interval, value, interval)

    def _score(self) -> Score | None:
        if self.scores is None or self.grader.score is None:
            return None
        known = self.scores[~np.isnan(self.scores)]
        if len(known) < 2:
            return None
        interval = None if self.grader.is_logarithm else mean_interval(known)
        interval = interval or bootstrap(len(known), lambda chosen: float(known[chosen].mean()))
        return Score(self.grader.score, float(known.mean()), interval)


@dataclass(frozen=True)
class Judged:
    """What became of one answer."""

    right: bool = False
    refused: bool = False
    cut_off: bool = False
    score: float | None = None


class AnswerJudge:
    """Judges generated answers to ``questions``.

    ``longest``: one more token than the longest response and refusal have, so that an answer shows that it ends, or
    goes on. An answer that is the refusal, and nothing more, is refused whatever the grader says; one that is not right
    and has no end is cut off.
    """

    def __init__(
        self, questions: Sequence[Question], grader: AnswerGrader, refusals: Refusals, runner: AnyRunner
    ) -> None:
        self._questions = questions
        self._grader = grader
        self._refusals = refusals
        self._tokenizer = runner.tokenizer
        self._ends = runner.end_tokens
        responses = max((len(question.record.response_ids) for question in questions), default=0)
        self.longest = max(responses, refusals.longest(runner.tokenizer), 1) + 1

    def judge(self, answers: Sequence[Sequence[int]]) -> list[Judged]:
        """``answers``: the generated tokens of each question, in the questions' order."""
        return [self._judged(tokens, question) for tokens, question in zip(answers, self._questions, strict=True)]

    def _judged(self, tokens: Sequence[int], question: Question) -> Judged:
        text = answer_text(self._tokenizer, tokens)
        verdict = self._grader.judge(text, question)
        if self._refusals.is_refusal(text):
            return Judged(refused=True, score=verdict.score)
        ended = bool(tokens) and tokens[-1] in self._ends
        return Judged(right=verdict.right, cut_off=not verdict.right and not ended, score=verdict.score)


def grade(
    runner: AnyRunner,
    source: Source,
    refusals: Refusals,
    *,
    by: Grader | None = None,
    options: EvaluateOptions = ALL_ROWS,
    track: Track = untracked,
    description: str = "answering",
) -> Graded:
    """Answer the rows of ``source``, and judge each answer. Raises ``DataError`` for rows that cannot be judged."""
    asked = _Asked.of(runner, source, refusals, EXACT_GRADER if by is None else by, options, description)
    return asked.graded(runner, refusals, options, track, description)


@dataclass(frozen=True)
class _Asked:
    """What one model is asked of one source; ``length``: the most tokens of an answer that is generated."""

    chosen: Chosen
    questions: Sequence[Question]
    grader: Grader
    length: int | None

    @classmethod
    def of(
        cls,
        runner: AnyRunner,
        source: Source,
        refusals: Refusals,
        grader: Grader,
        options: EvaluateOptions,
        description: str,
        asked: Chosen | None = None,
    ) -> _Asked:
        """``asked``: the rows, where another model was asked before.

        Raises ``DataError`` for rows that cannot be judged.
        """
        length = None
        if isinstance(grader, AnswerGrader):
            named = options.length(_longest(runner, source, refusals, grader) if grader.bounded else None)
            # A refusal that is cut off would count as an answer.
            length = max(named, refusals.longest(runner.tokenizer))
        chosen = asked or chosen_rows(source, options, length, description)
        questions = read_questions(chosen.source, grader, runner.tokenizer, runner.limits)
        if asked is None and (told := unlike_chats(chosen.source, runner.tokenizer)):
            _LOG.warning(f"{description}: {told}")
        return cls(chosen, questions, grader, length)

    def graded(
        self, runner: AnyRunner, refusals: Refusals, options: EvaluateOptions, track: Track, description: str
    ) -> Graded:
        """What the model answers, judged."""
        grader, questions = self.grader, self.questions
        if isinstance(grader, ReadingGrader):
            shown = showing_logits(runner, f"the grader `{next(iter(grader.described))}`")
            size = options.batch_size
            judged = [
                _read(verdict)
                for verdict in grader.read(shown, questions, batch_size=size, track=track, description=description)
            ]
        else:
            assert isinstance(grader, AnswerGrader)
            assert self.length is not None
            judge = AnswerJudge(questions, grader, refusals, runner)
            judged = judge.judge(_answers(runner, questions, self.length, options, track, description))
        return Graded(
            np.array([judgement.right for judgement in judged], dtype=bool),
            np.array([judgement.refused for judgement in judged], dtype=bool),
            np.array([judgement.cut_off for judgement in judged], dtype=bool),
            _scores(judged),
            grader,
            how_judged(grader, options),
            self.chosen.source,
            self.chosen.available,
        )


def chosen_rows(source: Source, options: EvaluateOptions, length: int | None, description: str) -> Chosen:
    """The rows that are measured; a log line says where they are not all. ``length``: as ``most_rows``."""
    most = options.most_rows(length)
    chosen = choose_rows(source, most)
    if most is not None and chosen.available > most:
        hint = " (`rows: all` measures all)" if options.rows == "auto" else ""
        _LOG.info(f"{description}: {most} of {chosen.available} rows are measured{hint}")
    return chosen


def how_judged(grader: Grader, options: EvaluateOptions) -> dict[str, Any]:
    """What figures depend on besides model and rows, as JSON: the grader, and how answers are generated."""
    how: dict[str, Any] = {"grade": dict(grader.described)}
    if not isinstance(grader, AnswerGrader):
        return how
    if options.runtime != "onnxruntime":
        how["runtime"] = options.runtime
    if not grader.bounded or options.max_new_tokens != "auto":
        how["max_new_tokens"] = options.length(None)
    if options.temperature:
        how |= {name: getattr(options, name) for name in ("temperature", "top_p", "seed")}
    return how


# How figures were made before there were other ways.
EXACTLY = how_judged(EXACT_GRADER, ALL_ROWS)


def _longest(runner: AnyRunner, source: Source, refusals: Refusals, grader: AnswerGrader) -> int:
    questions = read_questions(source, grader, runner.tokenizer, runner.limits)
    return AnswerJudge(questions, grader, refusals, runner).longest


def _read(verdict: Verdict | None) -> Judged:
    return Judged(refused=True) if verdict is None else Judged(right=verdict.right, score=verdict.score)


def _scores(judged: Sequence[Judged]) -> NDArray[np.float64] | None:
    if all(judgement.score is None for judgement in judged):
        return None
    return np.array([np.nan if judgement.score is None else judgement.score for judgement in judged], dtype=np.float64)


def _answers(
    runner: AnyRunner,
    questions: Sequence[Question],
    length: int,
    options: EvaluateOptions,
    track: Track,
    description: str,
) -> list[list[int]]:
    """The tokens of each question's answer: from the file of answers where it has them, else generated."""
    prompts = [question.record.prompt_ids for question in questions]
    sampling = Sampling(options.temperature, options.top_p, options.seed) if options.temperature else None
    answers: dict[int, list[int]] = {}
    file, keys = None, []
    if options.answers is not None:
        file = AnswerFile(options.answers)
        model = graph_files_digest(runner.path)
        decoding: dict[str, Any] = {"max_new_tokens": length, "ends": sorted(runner.end_tokens)}
        if isinstance(runner, GenaiRunner):
            decoding["runtime"] = "genai"
        if sampling is not None:
            decoding |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        for row, prompt in enumerate(prompts):
            keys.append(answer_key(model, prompt, decoding if sampling is None else {**decoding, "row": row}))
            if (known := file.answer(keys[row])) is not None:
                answers[row] = known
        if answers:
            _LOG.info(f"{description}: {len(answers)} of {len(prompts)} answers are in {options.answers}")
    todo = [row for row in range(len(prompts)) if row not in answers]
    each = runner.each_answer(prompts, length, sampling=sampling, batch_size=options.batch_size, only=todo)
    for row, tokens in track(paced(each, description, len(todo)), description, total=len(todo)):
        answers[row] = tokens
        if file is not None:
            described = {
                "what": description,
                "row": questions[row].where,
                "answer": answer_text(runner.tokenizer, tokens),
            }
            file.add(keys[row], tokens, described)
    return [answers[row] for row in range(len(prompts))]


def graph_files_digest(graph: Path) -> str:
    """What a model's answers depend on: SHA-256 of the graph, or those of its pair, and their data files."""
    files = [file for each in graphs_of(graph) for file in (each, *data_files(load_graph(each)).values())]
    return "+".join(hash_files(files))


def grade_each(
    runner: AnyRunner,
    model: str,
    data: Mapping[str, Source],
    refusals: Refusals,
    *,
    grades: Mapping[str, Grader] = MappingProxyType({}),
    options: EvaluateOptions = ALL_ROWS,
    asked: Mapping[str, Chosen] = MappingProxyType({}),
    track: Track = untracked,
) -> dict[str, Graded]:
    """One model's graded answers to each of ``data`` (name to source), by ``exact`` where ``grades`` says nothing.

    ``asked``: the rows of each that another model was asked before, for how many are chosen depends on the tokenizer.
    Raises ``DataError`` for rows that cannot be judged, before any is answered.
    """
    described = {name: f"{model} on {name}" for name in data}
    each = {
        name: _Asked.of(
            runner, source, refusals, grades.get(name, EXACT_GRADER), options, described[name], asked.get(name)
        )
        for name, source in data.items()
    }
    return {name: own.graded(runner, refusals, options, track, described[name]) for name, own in each.items()}


def measure(
    runner: AnyRunner,
    model: str,
    data: Mapping[str, Source],
    refusals: Refusals,
    *,
    options: EvaluateOptions = ALL_ROWS,
    track: Track = untracked,
) -> list[Row]:
    """One model's row for each of ``data`` (name to source), by exact match."""
    graded = grade_each(runner, model, data, refusals, options=options, track=track)
    return [graded_rows.row(model, name) for name, graded_rows in graded.items()]
