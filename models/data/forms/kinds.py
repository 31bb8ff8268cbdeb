"""The kinds of forms that a query is asked in, by group, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

# Words are drawn from one of two sets that share none: what fits a refusal, and what tests it.
Use = Literal["widening", "testing"]

SystemPrompt = Literal["system_prompt", "no_system_prompt"]
Turns = Literal["second_turn", "third_turn", "after_refusal", "follow_up"]
Wrapping = Literal["instruction", "thanks", "lead_in"]
# Pasted material beside the query.
Attachment = Literal["attachment"]
Scene = Literal["story", "quotation", "translation", "role"]
# Of any prompt.
Affix = Literal["suffix", "prefix"]
Surface = Literal["whitespace", "case", "punctuation"]
# Another wording of the same question, where the row itself gives one.
Given = Literal["paraphrase", "language"]
ChatKind = Literal[SystemPrompt, Turns, Wrapping, Attachment, Scene]
Kind = Literal[Affix, Surface, "few_shot", Given, ChatKind]

KINDS: tuple[Kind, ...] = get_args(Kind)
# Kinds that only conversations have: they are for models that are spoken to.
CHAT_KINDS: tuple[ChatKind, ...] = get_args(ChatKind)
SYSTEM_PROMPTS: tuple[SystemPrompt, ...] = get_args(SystemPrompt)
TURNS: tuple[Turns, ...] = get_args(Turns)

Plain = Literal["plain"]
PLAIN: Plain = "plain"
# How often a conversation is asked plainly, or in a form of each kind: relative shares, measured in
# examples/benchmarks/README.md. Letter cases have the largest, as their keys lie farthest from all others: with a tenth
# of them the regions leave capitals out, and with 1 in 37 instructions some of these, whose wordings differ most.
MIXTURE: Mapping[Kind | Plain, int] = {
    "plain": 4,
    "system_prompt": 2,
    "no_system_prompt": 1,
    "second_turn": 2,
    "third_turn": 2,
    "after_refusal": 2,
    "follow_up": 3,
    "instruction": 3,
    "thanks": 1,
    "lead_in": 1,
    "attachment": 4,
    "case": 8,
    "whitespace": 2,
    "punctuation": 1,
    "few_shot": 2,
    "story": 2,
    "quotation": 3,
    "translation": 2,
    "role": 2,
}
