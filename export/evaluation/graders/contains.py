"""The answer holds the response, or another accepted answer."""

from __future__ import annotations

import re
import unicodedata

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.export.recipes.grades import ContainsOptions
from bakeout.models.data.row_source import DataError

# Scripts whose words run on without spaces, or take particles without one: Thai, Lao, Tibetan, Burmese, Khmer, Korean,
# Japanese and Chinese.
_RUNNING_ON = (
    r"\u0E00-\u109F\u1100-\u11FF\u1780-\u17FF\u3040-\u30FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97F"
    r"\uAC00-\uD7FF\uF900-\uFAFF\uFF66-\uFFDC\U00020000-\U0003FFFF"
)
# A letter or digit that may belong to the word beside it. Underscores are emphasis in Markdown.
_OF_A_WORD = rf"[^\W_{_RUNNING_ON}]"


class Contains(AnswerGrader):
    """Looks for whole words: `art` is not in `start`. In scripts without spaces it is found anywhere."""

    title = "contains the response"

    def __init__(self, options: ContainsOptions) -> None:
        self._flags = re.NOFLAG if options.case else re.IGNORECASE

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row with nothing to look for."""
        _accepted(question)

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where any accepted answer is in it, however its words are spaced."""
        text = _spaced(answer)
        patterns = (_as_words(_spaced(accepted)) for accepted in _accepted(question))
        return Verdict(any(re.search(pattern, text, self._flags) for pattern in patterns))


def _as_words(text: str) -> str:
    """A pattern of ``text`` where no word goes on beyond either end."""
    first, last = (re.match(f"[{_RUNNING_ON}]", end) is not None for end in (text[:1], text[-1:]))
    return ("" if first else f"(?<!{_OF_A_WORD})") + re.escape(text) + ("" if last else f"(?!{_OF_A_WORD})")


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
    """Single spaces, and letters with their accents as one character each."""
    return " ".join(unicodedata.normalize("NFC", text).split())
