"""The Deviation Score of LUNAR (arXiv 2502.07218): how far a model is from forgetting all and keeping all."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bakeout.models.errors import BakeoutError


def rouge1(answer: str, expected: str) -> float:
    """ROUGE-1 recall: the share of the words of ``expected``, in lower case and counted, that ``answer`` has."""
    expected_words, answer_words = Counter(_words(expected)), Counter(_words(answer))
    return (
        (expected_words & answer_words).total() / expected_words.total() if expected_words else float(not answer_words)
    )


def deviation_score(forget: Sequence[tuple[str, str]], retain: Sequence[tuple[str, str]]) -> float:
    """``100 sqrt(ROUGE1_forget² + (1 - ROUGE1_retain)²)`` of (answer, expected) pairs: 0 is best, lower is better.

    Our reading, as the paper's summary gives no formula: each ROUGE-1 is the mean of ``rouge1`` over its pairs.
    Raises ``BakeoutError`` where either set is empty.
    """
    if not forget or not retain:
        raise BakeoutError("A Deviation Score needs answers to forget and to retain.", "Give both data sets.")
    forgotten, kept = (float(np.mean([rouge1(*pair) for pair in pairs])) for pairs in (forget, retain))
    return 100 * math.hypot(forgotten, 1 - kept)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
