"""How probable the response is, per token: no generation needed, and free-form answers are compared fairly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bakeout.export.evaluation.graders.grader import Question, ReadingGrader, Verdict, no_response
from bakeout.export.evaluation.graders.reading import read_responses
from bakeout.export.recipes.grades import LikelihoodOptions
from bakeout.models.progress import Track

if TYPE_CHECKING:
    from bakeout.export.running.runner import Runner


class ResponseLikelihood(ReadingGrader):
    """Log P(response | prompt) divided by the response's tokens: the logarithm of TOFU's Probability."""

    title = "every token of the response the most probable one"
    score = "log p per token"
    is_logarithm = True

    def __init__(self, options: LikelihoodOptions) -> None:
        pass

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row without a response."""
        if not question.record.response_ids:
            raise no_response(question.where)

    def read(
        self, runner: Runner, questions: Sequence[Question], *, batch_size: int, track: Track, description: str
    ) -> list[Verdict | None]:
        """Right where every token is the most probable one; the score is the log p per token."""
        records = [question.record for question in questions]
        readings = read_responses(runner, records, batch_size=batch_size, track=track, description=description)
        return [None if reading is None else Verdict(reading.greedy, reading.mean) for reading in readings]
