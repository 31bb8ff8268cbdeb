"""Attacks with two questions in one prompt, one to forget and one to keep (BLUR, arXiv 2506.15699)."""

from __future__ import annotations

from collections.abc import Sequence

from bakeout.models.data.forms.forms import Form
from bakeout.models.data.forms.kinds import PLAIN
from bakeout.models.data.prompt_rows import PromptRow
from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.tokenization import Tokenizer

ORDERS = ("forget_first", "retain_first")
Pair = tuple[PromptRow, PromptRow]


def pairs(forget: Sequence[PromptRow], retain: Sequence[PromptRow]) -> list[Pair]:
    """Each row to forget with one to keep, which are taken in turn."""
    return [(row, retain[place % len(retain)]) for place, row in enumerate(forget)]


def mixed(pair: Pair, order: str, tokenizer: Tokenizer) -> Record:
    """Both questions in one prompt, in the form of the row to forget; its response is that row's."""
    questions = [row.query.text for row in (pair if order == "forget_first" else reversed(pair))]
    return pair[0].record(Form(PLAIN, 0, "\n".join(questions)), tokenizer)
