"""How much of the response the answer says: ROUGE-L recall, as TOFU (arXiv 2401.06121) measures it."""

from __future__ import annotations

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.export.recipes.grades import RougeOptions
from bakeout.models.data.row_source import DataError
from bakeout.models.extras import missing_extra


class Rouge(AnswerGrader):
    """The recall of the longest common subsequence of stemmed words, by the package rouge_score."""

    title = "ROUGE-L recall from the threshold on"
    score = "ROUGE-L recall"

    def __init__(self, options: RougeOptions) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ModuleNotFoundError as error:
            raise (missing_extra(error, "The grader `rouge`") or error) from None
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)
        self._threshold = options.threshold

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a response without words in ROUGE's sense."""
        if not any(character.isascii() and character.isalnum() for character in question.response):
            raise DataError(
                f"{question.where}: the response has no words of the letters a to z, which are all that ROUGE counts.",
                "Use another grader.",
            )

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right from the threshold on; the score is the recall."""
        recall = self.recall(answer, question.response)
        return Verdict(recall >= self._threshold, recall)

    def recall(self, answer: str, response: str) -> float:
        """The share of the response that the answer says."""
        return float(self._scorer.score(response, answer)["rougeL"].recall)
