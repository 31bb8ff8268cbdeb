"""Reveal (arXiv 2509.14624): a model that is asked with chosen instructions generates its own forget data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.methods.reveal_and_release.neural_ucb import NeuralUCB
from bakeout.models.methods.reveal_and_release.options import RevealOptions
from bakeout.models.methods.reveal_and_release.scorers import Scorer, encoded, mean_hidden_states, served
from bakeout.models.network.generation import Continuation, continue_prompts, end_tokens
from bakeout.models.progress import Track, untracked


@dataclass(frozen=True)
class Revealed:
    """A question that the model generated when given an instruction, its own answer, and why they were kept."""

    instruction: str
    question: str
    answer: str
    score: float
    confidence: float


def instruction_bandit(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    candidates: Sequence[str],
    options: RevealOptions,
    seed: int,
) -> NeuralUCB:
    """The bandit over instructions; e(x) is the model's own mean hidden state of the candidate."""
    return NeuralUCB(
        mean_hidden_states(model, [encoded(text, tokenizer, chat=options.chat) for text in candidates]),
        exploration=options.exploration,
        regularisation=options.regularisation,
        seed=seed,
    )


def reveal_forget_data(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    candidates: Sequence[str],
    bandit: NeuralUCB,
    scorer: Scorer,
    *,
    known: Iterable[str],
    options: RevealOptions,
    seed: int,
    track: Track = untracked,
) -> list[Revealed]:
    """One round: ``options.pulls`` instructions chosen by the bandit, and the data that the model reveals to them.

    The model is asked with an instruction, generates questions, and answers each by itself, without the instruction.
    Kept are questions that are neither in ``known``, prompts as rows have them, nor revealed before (white space does
    not count), whose question and answer come to an end, of which the model is confident, and which the scorer accepts.
    An instruction's reward is the share of its samples that are kept: they must be on the subject, varied and new.
    """
    end = end_tokens(model, tokenizer)
    seen = {_normal(prompt) for prompt in known}

    def is_new(question: str) -> bool:
        # The prompts of rows are bare, or rendered by the chat template.
        forms = (served(question, tokenizer, chat=chat) for chat in {False, options.chat})
        return seen.isdisjoint(map(_normal, forms))

    revealed: list[Revealed] = []
    for pull in track(range(options.pulls), "revealing", options.pulls):
        arm = bandit.choose()
        prompt = encoded(candidates[arm], tokenizer, chat=options.chat)
        sampled = continue_prompts(
            model,
            [prompt] * options.samples,
            end=end,
            max_new_tokens=options.question_tokens,
            temperature=options.temperature,
            seed=seed + pull,
        )
        fresh: dict[str, str] = {}
        for continuation in sampled:
            question = _text(continuation, tokenizer).strip()
            if continuation.finished and question and is_new(question):
                fresh.setdefault(_normal(question), question)
        kept = []
        questions = list(fresh.values())
        for question, continuation in zip(questions, _answers(model, tokenizer, questions, options), strict=True):
            answer = _text(continuation, tokenizer)
            if continuation.finished and answer and continuation.confidence >= options.minimum_confidence:
                score = scorer(question, answer)
                if score >= options.minimum_score:
                    kept.append(Revealed(candidates[arm], question, answer, score, round(continuation.confidence, 6)))
        seen.update(_normal(revealed_row.question) for revealed_row in kept)
        revealed += kept
        bandit.observe(arm, len(kept) / options.samples)
    return revealed


def audit_lines(revealed: Sequence[Revealed], options: RevealOptions) -> str:
    """Revealed data in the form of any data file: JSON lines with ``prompt`` and ``response``, or ``messages``.

    Beside them every row has its instruction, score and confidence.
    """
    lines = []
    for answered in revealed:
        row: dict[str, Any]
        if options.chat:
            roles = (("user", answered.question), ("assistant", answered.answer))
            row = {"messages": [{"role": role, "content": content} for role, content in roles]}
        else:
            row = {"prompt": answered.question, "response": answered.answer}
        row |= {"instruction": answered.instruction, "score": answered.score, "confidence": answered.confidence}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def _answers(
    model: PreTrainedModel, tokenizer: Tokenizer, questions: Sequence[str], options: RevealOptions
) -> list[Continuation]:
    """The model's greedy answers."""
    return continue_prompts(
        model,
        [encoded(question, tokenizer, chat=options.chat) for question in questions],
        end=end_tokens(model, tokenizer),
        max_new_tokens=options.answer_tokens,
    )


def _text(continuation: Continuation, tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode(continuation.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _normal(question: str) -> str:
    return " ".join(question.split())
