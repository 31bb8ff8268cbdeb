"""The answer matches a regular expression."""

from __future__ import annotations

import re

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.export.recipes.grades import RegexOptions

_RESPONSE = "{response}"


class Regex(AnswerGrader):
    """Searches the answer."""

    title = "matches the pattern"

    def __init__(self, options: RegexOptions) -> None:
        self._pattern = options.pattern

    def require(self, question: Question) -> None:
        """Raise ``DataError`` where the pattern needs a response and the row has none."""
        if _RESPONSE in self._pattern:
            _ = question.response

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where the pattern matches anywhere."""
        pattern = self._pattern
        if _RESPONSE in pattern:
            pattern = pattern.replace(_RESPONSE, re.escape(question.response.strip()))
        return Verdict(re.search(pattern, answer) is not None)
