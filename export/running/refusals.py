"""What counts as a refusal: an answer, by its text; a position of a baked graph, by its logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bakeout.export.artifacts.file_names import PLAN
from bakeout.export.running.sampling import Logits
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import load_plan

# A refused position gives every token but its own a logit 30,000 lower; no model comes near that by itself.
_OUT_OF_REACH = 20_000


@dataclass(frozen=True)
class Refusals:
    """The texts with which the plans or artifacts that are compared refuse a query; none where none of them can.

    ``length``: the tokens that the longest one is said in, its end aside, for spaces around it are in no text.

    >>> refusals = Refusals(frozenset({"I cannot answer that."}))
    >>> refusals.is_refusal("I cannot answer that."), refusals.is_refusal("42")
    (True, False)
    """

    texts: frozenset[str] = frozenset()
    length: int = 0

    @classmethod
    def of_plan(cls, plan: Plan, tokenizer: Tokenizer) -> Refusals:
        """The refusals of one plan."""
        if plan.check is None:
            return cls()
        said = plan.check.refusal.tolist()
        return cls(frozenset({answer_text(tokenizer, said)}), len(said) - 1)

    @classmethod
    def of_artifacts(cls, directories: Iterable[Path]) -> Refusals:
        """The refusals of several artifacts together; a directory without a plan has none."""
        plans = [directory for directory in directories if (directory / PLAN).is_file()]
        each = [cls.of_plan(load_plan(directory / PLAN), load_tokenizer(directory)) for directory in plans]
        texts = frozenset(text for refusals in each for text in refusals.texts)
        return cls(texts, max((refusals.length for refusals in each), default=0))

    def __bool__(self) -> bool:
        return bool(self.texts)

    def is_refusal(self, answer: str) -> bool:
        """Whether an answer (``answer_text``) is one of the refusals, and nothing more."""
        return answer in self.texts

    def longest(self, tokenizer: Tokenizer) -> int:
        """The number of tokens of the longest refusal, 0 where there is none."""
        return max([self.length, *(len(tokenizer.encode(text)) for text in self.texts)])


def answer_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Generated tokens as the text that is compared: without special tokens and surrounding whitespace."""
    return tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


def is_refused(logits: Logits) -> bool:
    """Whether a graph refuses at the position of these logits, float32 [vocabulary]: one token alone is possible."""
    second, highest = np.partition(logits, -2)[-2:]
    return bool(second < highest - _OUT_OF_REACH)
