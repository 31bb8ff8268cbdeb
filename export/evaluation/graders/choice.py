"""Which of a row's choices the model finds most likely."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from bakeout.export.evaluation.graders.grader import Question, ReadingGrader, Verdict, no_response
from bakeout.export.evaluation.graders.reading import read_responses
from bakeout.export.recipes.grades import ChoiceOptions
from bakeout.models.data.prompt_rows import answering, asking_more
from bakeout.models.data.row_source import DataError
from bakeout.models.data.rows import to_record
from bakeout.models.progress import Track

if TYPE_CHECKING:
    from bakeout.export.running.runner import Runner


_LETTER = re.compile(r"\(?([A-Za-z])[).]?")


class Choice(ReadingGrader):
    """Compares the log-likelihoods of the choices: per token of their own text, or of their letters (MMLU)."""

    title = "the right choice the most likely"

    def __init__(self, options: ChoiceOptions) -> None:
        self._by_letter = options.by == "letter"

    def asked(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The row, with its choices listed behind the question where letters are compared."""
        if not self._by_letter:
            return row
        choices, _ = choices_of(row, None, where)
        listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
        return asking_more(row, f"{listed}\nAnswer:", where)

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row without choices, or whose right one is not known."""
        choices_of(question.row, question.expected, question.where)

    def read(
        self, runner: Runner, questions: Sequence[Question], *, batch_size: int, track: Track, description: str
    ) -> list[Verdict | None]:
        """Right where no other choice is as likely."""
        records, rights = [], []
        for question in questions:
            choices, right = choices_of(question.row, question.expected, question.where)
            shown = list(ascii_uppercase[: len(choices)]) if self._by_letter else choices
            # As it is written behind the prompt: a space separates the two, as where a response has one.
            written = str(question.row.get("response", ""))
            space = " " if written[:1] == " " or (self._by_letter and "messages" not in question.row) else ""
            every = [
                to_record(answering(question.row, space + text), runner.tokenizer, question.where) for text in shown
            ]
            # The choice alone: how likely the end is behind it is another question.
            records.append([replace(record, response_ids=record.answer_ids(runner.end_tokens)) for record in every])
            rights.append(right)
        flat = [record for group in records for record in group]
        readings = read_responses(runner, flat, batch_size=batch_size, track=track, description=description)
        verdicts: list[Verdict | None] = []
        for group, right in zip(records, rights, strict=True):
            likelihoods = [None if reading is None else reading.mean for reading in readings[: len(group)]]
            readings = readings[len(group) :]
            known = [likelihood for likelihood in likelihoods if likelihood is not None]
            if len(known) < len(likelihoods):
                verdicts.append(None)
                continue
            best = max(known)
            verdicts.append(Verdict(known[right] == best and known.count(best) == 1))
        return verdicts


def choices_of(row: Mapping[str, Any], expected: str | None, where: str) -> tuple[list[str], int]:
    """A row's choices, and the index of the right one: that of its ``answer``, or else the response's.

    It is a choice, its index from 0, also in digits where the choices are no numbers, or its letter, as in "b", "B."
    and "(B)". Any other text is put before the ``choices``, which are then the wrong ones alone, as TOFU's
    ``perturbed_answer``; with them, a number or a letter must be the response, since as ``answer`` it names a place.
    Raises ``DataError``.
    """
    choices = row.get("choices")
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise DataError(f"{where}: the row has no list of choices.", "Give each row `choices`, as texts.")
    if len(choices) > len(ascii_uppercase):
        raise DataError(f"{where}: {len(choices)} choices.", f"Give at most {len(ascii_uppercase)}.")
    answer = row.get("answer", row.get("response") if expected is None else expected)
    if isinstance(answer, str):
        answer = answer.strip()
        if answer in choices:
            return choices, choices.index(answer)
        if not answer:
            raise no_response(where)
        if (place := _place(answer, choices)) is not None and place < len(choices):
            return choices, place
        is_label = answer.isdecimal() or _LETTER.fullmatch(answer) is not None
        if not (is_label and "answer" in row):
            return [answer, *choices], 0
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return choices, answer
    raise DataError(f"{where}: the answer {answer!r} is none of the choices.", "Correct or remove the row.")


def _place(answer: str, choices: Sequence[str]) -> int | None:
    """The place that a number or a letter names."""
    if answer.isdecimal():
        # Python reads no number of thousands of digits, and no place has more than two.
        is_place = len(answer) <= 2 and not any(choice.strip().isdecimal() for choice in choices)
        return int(answer) if is_place else None
    letter = _LETTER.fullmatch(answer)
    return ascii_uppercase.index(letter[1].upper()) if letter else None
