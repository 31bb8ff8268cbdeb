"""The answer is the response."""

from __future__ import annotations

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict, no_response
from bakeout.export.recipes.grades import ExactOptions


class Exact(AnswerGrader):
    """Compares texts, surrounding whitespace aside."""

    title = "exact match"
    bounded = True

    def __init__(self, options: ExactOptions) -> None:
        pass

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row without a response."""
        if question.expected is None:
            raise no_response(question.where)

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where both are the same."""
        return Verdict(answer == question.expected)
