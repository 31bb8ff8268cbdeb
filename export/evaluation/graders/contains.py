"""The answer holds the response, or another accepted answer."""

from __future__ import annotations

import re

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.export.recipes.grades import ContainsOptions
from bakeout.models.data.row_source import DataError


class Contains(AnswerGrader):
    """Looks for whole words: `art` is not in `start`."""

    title = "contains the response"

    def __init__(self, options: ContainsOptions) -> None:
        self._flags = re.NOFLAG if options.case else re.IGNORECASE

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row with nothing to look for."""
        _accepted(question)

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where any accepted answer is in it, however its words are spaced."""
        text = _spaced(answer)
        patterns = (rf"(?<!\w){re.escape(_spaced(accepted))}(?!\w)" for accepted in _accepted(question))
        return Verdict(any(re.search(pattern, text, self._flags) for pattern in patterns))


def _accepted(question: Question) -> list[str]:
    """The row's ``answers``, else its response."""
    answers = question.row.get("answers")
    if answers is None:
        return [question.response]
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) and answer.strip() for answer in answers)
    ):
        raise DataError(f"{question.where}: answers is no list of texts.", "Correct or remove the row.")
    return answers


def _spaced(text: str) -> str:
    return " ".join(text.split())
