"""Exact match and refusals: a model's greedy answers beside the expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bakeout.export.evaluation.rows import Row
from bakeout.export.running.refusals import Refusals, answer_text
from bakeout.export.running.runner import Runner
from bakeout.models.data.row_source import DataError, Source
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.progress import Track, untracked


@dataclass(frozen=True, eq=False)
class Graded:
    """A model's answers to some rows, in their order: bool [rows] each, exact match and refusal."""

    correct: NDArray[np.bool_]
    refused: NDArray[np.bool_]

    def row(self, model: str, data: str) -> Row:
        """The shares of both."""
        return Row(model, data, len(self.correct), float(self.correct.mean()), float(self.refused.mean()))


class Grader:
    """Grades answers to ``records``: correct is the response, surrounding whitespace aside.

    ``max_new_tokens``: one more than the longest response and refusal, so that an answer shows that it ends, or goes
    on.
    """

    def __init__(self, records: Sequence[Record], refusals: Refusals, tokenizer: Tokenizer) -> None:
        self._expected = [answer_text(tokenizer, record.response_ids) for record in records]
        self._refusals = refusals
        self._tokenizer = tokenizer
        responses = max((len(record.response_ids) for record in records), default=0)
        self.max_new_tokens = max(responses, refusals.longest(tokenizer), 1) + 1

    def grade(self, answers: Sequence[Sequence[int]]) -> Graded:
        """``answers``: the generated tokens of each record, in the records' order."""
        texts = [answer_text(self._tokenizer, tokens) for tokens in answers]
        correct = [text == expected for text, expected in zip(texts, self._expected, strict=True)]
        refused = [self._refusals.is_refusal(text) for text in texts]
        return Graded(np.array(correct, dtype=bool), np.array(refused, dtype=bool))


def grade(
    runner: Runner,
    source: Source,
    refusals: Refusals,
    *,
    batch_size: int = 32,
    track: Track = untracked,
    description: str = "answering",
) -> Graded:
    """Answer every prompt of ``source`` greedily. Raises ``DataError`` for rows without a prompt or a response."""
    records = read_records(source, runner.tokenizer, runner.limits)
    for record in records:
        if record.response is None or not record.prompt_ids:
            raise DataError(
                f"{record.where}: the row has no {'response' if record.prompt_ids else 'prompt'}.",
                "Evaluate on rows with `prompt` and `response`, or with `messages` that end with the answer.",
            )
    grader = Grader(records, refusals, runner.tokenizer)
    answers: list[list[int]] = [[] for _ in records]
    shortest_first = sorted(range(len(records)), key=lambda row: len(records[row].prompt_ids))
    chunks = [shortest_first[start : start + batch_size] for start in range(0, len(records), batch_size)]
    for chunk in track(chunks, description, total=len(chunks)):
        prompts = [records[row].prompt_ids for row in chunk]
        generated = runner.generate(prompts, grader.max_new_tokens, batch_size=batch_size)
        for row, tokens in zip(chunk, generated, strict=True):
            answers[row] = tokens
    return grader.grade(answers)


def measure(
    runner: Runner,
    model: str,
    data: Mapping[str, Source],
    refusals: Refusals,
    *,
    batch_size: int = 32,
    track: Track = untracked,
) -> list[Row]:
    """One model's row for each of ``data`` (name to source)."""
    rows = []
    for name, source in data.items():
        graded = grade(runner, source, refusals, batch_size=batch_size, track=track, description=f"{model} on {name}")
        rows.append(graded.row(model, name))
    return rows
