"""A function of the caller's as a grader, in Python alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.models.errors import BakeoutError

# Given an answer and its row: whether it is right, or a score between 0 and 1, of which at least 0.5 is right.
Judge = Callable[[str, Mapping[str, Any]], bool | float]
_RIGHT_FROM = 0.5


class Custom(AnswerGrader):
    """Asks the function."""

    title = "by the caller's function"
    score = "score"

    def __init__(self, judge: Judge) -> None:
        self.described = {"function": {}}
        self._judge = judge

    def require(self, question: Question) -> None:
        """The function decides what it needs."""

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where the function says so. Raises ``BakeoutError`` for a score that is none."""
        value = self._judge(answer, question.row)
        if isinstance(value, bool):
            return Verdict(value)
        # Also of NaN, which is in no order.
        if not 0 <= value <= 1:
            raise BakeoutError(
                f"{question.where}: the function given as `grade` returned {value}.",
                "Return a bool, or a score between 0 and 1.",
            )
        return Verdict(value >= _RIGHT_FROM, float(value))
