"""What a model would answer greedily, read from one forward pass per row that holds the expected answer already."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.data.padding import left_padded, right_padded
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.network.devices import in_float64, input_device, tokens_at_once
from bakeout.models.network.families import text_config
from bakeout.models.network.generation import is_told_positions
from bakeout.models.network.probing import batches_by_length
from bakeout.models.network.processes import in_order, least, share
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked

# Divergences are computed over the base model's most probable tokens, with all others as one.
_FIRST_TOKENS = 64
# Logits of one forward pass (256 MiB in float32): what is left of them behind it is a few numbers a row.
_BATCH_LOGITS = 1 << 26
# A row, whether it is correct, its share of correct tokens, first tokens and their log-probabilities.
_Scored = tuple[int, bool, float, NDArray[np.int64], Floats]
# Rows that a base model is tried on: where it answers none of them exactly, it is taken to answer in its own words. A
# long answer of these is read to its end only where its first tokens are the expected ones.
_TRIED, _BEGINNING = 32, 8
# A model that answers a smaller share of a skill's rows exactly is not judged by exact answers.
FEW_CORRECT = 0.2


@dataclass(frozen=True, eq=False)
class FirstTokens:
    """The most probable first tokens of each answer: int64 [n, k], and their log-probabilities, float64 [n, k]."""

    tokens: NDArray[np.int64]
    logarithms: Floats


@dataclass(frozen=True, eq=False)
class Answers:
    """How a model answers n rows.

    ``correct`` bool [n]: the greedy answer is the expected one, token by token, and ends there. ``tokens`` float64 [n]:
    the share of the answer's tokens that are the most probable given those before them. ``first``: the most probable
    first tokens of the answers or, if such were given (the base model's), the same tokens.
    """

    correct: NDArray[np.bool_]
    tokens: Floats
    first: FirstTokens

    def divergence(self, base: Answers) -> Floats:
        """KL(base || this) of each row's first answer token, in nats: float64 [n].

        Over the base's most probable tokens, with all others as one: a close lower bound.
        """
        ours, theirs = self.first.logarithms, base.first.logarithms
        rest_ours, rest_theirs = (
            np.clip(1 - np.exp(logarithms).sum(axis=1), 1e-12, 1) for logarithms in (ours, theirs)
        )
        inside = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
        divergence: Floats = inside + rest_theirs * (np.log(rest_theirs) - np.log(rest_ours))
        return np.maximum(divergence, 0.0)


def answers(
    model: PreTrainedModel,
    records: Sequence[Record],
    *,
    end: frozenset[int],
    base: Answers | None = None,
    batch_size: int = 16,
    description: str = "answering",
    track: Track = untracked,
) -> Answers:
    """Score the expected responses of ``records``. ``end``: the tokens that end a text (``generation.end_tokens``).

    A greedy loop generates the expected answer if and only if each of its tokens, and an end token after them, is the
    most probable one given those before it. One forward pass shows this; generating takes one for each token.
    ``base``: the base model's answers to the same records, whose most probable first tokens are looked up.

    A row without a prompt has nothing before its first token: that one is taken as its prompt. The end that a chat
    template writes behind an answer is not part of it.

    Raises ``BakeoutError`` for records without a response.
    """
    rows_of_two = [_prompt_and_answer(record, end) for record in records]
    if not rows_of_two or not all(prompt and response for prompt, response in rows_of_two):
        raise BakeoutError("A row has no response to measure answers by.", "Give rows with `prompt` and `response`.")
    ends = torch.tensor(sorted(end), dtype=torch.int64, device=input_device(model))
    batches = batches_by_length(
        [len(prompt) + len(response) for prompt, response in rows_of_two],
        batch_size,
        most_tokens=min(least(tokens_at_once(model)), _BATCH_LOGITS // text_config(model).vocab_size),
    )
    correct = np.zeros(len(records), dtype=bool)
    tokens = np.zeros(len(records))
    most_probable = np.zeros((len(records), min(_FIRST_TOKENS, text_config(model).vocab_size)), dtype=np.int64)
    logarithms = np.zeros(most_probable.shape)

    def score(rows: Sequence[int]) -> Iterator[_Scored]:
        batch_logits = _answer_logits(model, [rows_of_two[row] for row in rows])
        for row, logits in zip(rows, batch_logits, strict=True):
            expected = torch.tensor(rows_of_two[row][1], device=logits.device)
            best = logits.argmax(dim=-1)
            hits = best[: len(expected)] == expected
            ended = len(ends) == 0 or bool(torch.isin(best[-1], ends))
            first = torch.log_softmax(in_float64(logits[0]), dim=-1)
            if base is None:
                chosen = first.topk(most_probable.shape[1]).indices
            else:
                chosen = torch.from_numpy(base.first.tokens[row]).to(first.device)
            right = float(hits.cpu().double().mean())
            yield row, bool(hits.all()) and ended, right, chosen.cpu().numpy(), first[chosen].cpu().numpy()

    own = share(batches)
    for scored in in_order([*score(rows)] for rows in track(own, description, len(own))):
        for row, is_correct, right, first_tokens, their_logarithms in scored:
            correct[row], tokens[row] = is_correct, right
            most_probable[row], logarithms[row] = first_tokens, their_logarithms
    return Answers(correct, tokens, FirstTokens(most_probable, logarithms))


def exactly_answered(
    model: PreTrainedModel,
    records: Sequence[Record],
    *,
    end: frozenset[int],
    batch_size: int = 16,
    track: Track = untracked,
) -> NDArray[np.bool_]:
    """Which of ``records`` the model answers exactly as expected: bool [n] (``Answers.correct``).

    A model that answers in its own words never does. Where none of the first 32 rows is answered exactly, the others
    are not tried, and none counts as correct. Raises as ``answers``.
    """
    correct = np.zeros(len(records), dtype=bool)
    begun = [replace(record, response_ids=record.answer_ids(end)[:_BEGINNING]) for record in records[:_TRIED]]
    # No token ends what is cut off.
    begins = answers(model, begun, end=frozenset(), batch_size=batch_size, track=track).correct
    tried: list[int] = np.flatnonzero(begins).tolist()
    for rows in (tried, list(range(_TRIED, len(records)))):
        if rows:
            chosen = [records[row] for row in rows]
            correct[rows] = answers(model, chosen, end=end, batch_size=batch_size, track=track).correct
        if not correct.any():
            break
    return correct


def _prompt_and_answer(record: Record, end: frozenset[int]) -> tuple[list[int], list[int]]:
    if record.prompt_ids:
        return record.prompt_ids, record.answer_ids(end)
    return record.response_ids[:1], replace(record, response_ids=record.response_ids[1:]).answer_ids(end)


@torch.no_grad()
def _answer_logits(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
    """Per row the logits [response + 1, vocabulary] behind the prompt's last token and every token of the response."""
    sequences = [prompt + response for prompt, response in rows]
    told = is_told_positions(model)
    padded = left_padded(sequences) if told else right_padded(sequences)
    input_ids, mask = (torch.from_numpy(array).to(input_device(model)) for array in padded)
    options: dict[str, Any] = {}
    if told:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            options["logits_to_keep"] = max(len(response) for _, response in rows) + 1
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options).logits
    padding = [0 if told else input_ids.shape[1] - len(sequence) for sequence in sequences]
    return [
        row[len(row) - behind - len(response) - 1 : len(row) - behind].float()
        for row, behind, (_, response) in zip(logits, padding, rows, strict=True)
    ]
