"""What a grader is: it judges answers that were generated, or reads what a model gives the answers that it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from bakeout.models.data.row_source import DataError
from bakeout.models.progress import Track

if TYPE_CHECKING:
    from bakeout.export.running.runner import Runner
    from bakeout.models.data.rows import Record


@dataclass(frozen=True)
class Question:
    """A row as it is asked: encoded, and with all of its fields.

    ``expected``: the response without special tokens and surrounding whitespace; None where the row has none.
    """

    record: Record
    row: Mapping[str, Any]
    expected: str | None

    @property
    def where(self) -> str:
        """Where the row stands, for errors."""
        return self.record.where

    @property
    def response(self) -> str:
        """The reference answer. Raises ``DataError`` where the row has none."""
        if not self.expected:
            raise no_response(self.where)
        return self.expected


def no_response(where: str) -> DataError:
    """What is raised for a row whose grader needs a reference answer."""
    return DataError(
        f"{where}: the row has no response.",
        "Evaluate on rows with `prompt` and `response`, or with `messages` that end with the answer.",
    )


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right; ``score``: the grader's figure for it, where it has one."""

    right: bool
    score: float | None = None


class Grader(ABC):
    """A grader with its options.

    ``title``: what an answer that is right is, in words; ``score``: what tables call the score, None where it has none;
    ``is_logarithm``: whether scores are logarithms, so that the difference to the base model's is that of a ratio;
    ``described``: the grader's name and options, as JSON.
    """

    title: ClassVar[str]
    score: ClassVar[str | None] = None
    is_logarithm: ClassVar[bool] = False
    described: Mapping[str, Any] = MappingProxyType({})

    def asked(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The row as it is asked: some graders add to the question. Raises ``DataError``."""
        return row

    @abstractmethod
    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row that cannot be judged."""


class AnswerGrader(Grader):
    """Judges answers that the model generated."""

    # Whether no answer that is longer than the longest response can be right.
    bounded: ClassVar[bool] = False

    @abstractmethod
    def judge(self, answer: str, question: Question) -> Verdict:
        """``answer``: without special tokens and surrounding whitespace."""


class ReadingGrader(Grader):
    """Reads what the model gives answers that it is shown; nothing is generated."""

    @abstractmethod
    def read(
        self, runner: Runner, questions: Sequence[Question], *, batch_size: int, track: Track, description: str
    ) -> list[Verdict | None]:
        """A verdict for each question, None where the model refuses it."""
