"""Batches of prompts continued by a PyTorch model, greedily or by seeded sampling, with the model's confidence."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.checkpoint.end_of_text import CONFIG, GENERATION, TOKENIZER, EndOfText, config_value, end_of_text
from bakeout.models.data.padding import left_padded
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.network.devices import in_float64, input_device
from bakeout.models.network.families import model_limits
from bakeout.models.network.structure.caches import new_cache, with_cache
from bakeout.models.progress import Track, untracked


@dataclass(frozen=True)
class Continuation:
    """What a model generated after a prompt.

    ``ids`` end with the end-of-text token, or after ``max_new_tokens`` where it was not ``finished``.
    ``confidence`` is the geometric mean of their probabilities at temperature 1.
    """

    ids: list[int]
    finished: bool
    confidence: float


def named_ends(model: PreTrainedModel, tokenizer: Tokenizer | None) -> EndOfText:
    """What the configurations of a loaded model, and its tokenizer if given, name as the tokens that end a text."""
    return end_of_text(
        {
            GENERATION: getattr(model.generation_config, "eos_token_id", None),
            CONFIG: config_value(model.config.to_dict(), "eos_token_id"),
            TOKENIZER: tokenizer.eos_token_id if tokenizer else None,
        }
    )


def end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens with which this model ends a text: all that its configurations and its tokenizer name."""
    return frozenset(named_ends(model, tokenizer).tokens)


def continue_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end: frozenset[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    description: str = "generating",
    track: Track = untracked,
) -> list[Continuation]:
    """One continuation of each prompt, in their order. Temperature 0 is greedy; the draws follow from ``seed``.

    No prompt may be empty. A text that fills the model's context is not finished. Raises ``BakeoutError`` for what the
    model cannot read.
    """
    limits = model_limits(model)
    for prompt in prompts:
        limits.require(prompt, None, "A prompt")
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    generator = torch.Generator(input_device(model)).manual_seed(seed)
    continuations: dict[int, Continuation] = {}
    for batch in track(batches, description, len(batches)):
        for rows, room in within_context(model, batch, prompts, max_new_tokens):
            texts = _continue_batch(model, [prompts[row] for row in rows], end, room, temperature, generator)
            continuations.update(zip(rows, texts, strict=True))
    return [continuations[index] for index in range(len(prompts))]


def is_told_positions(model: PreTrainedModel) -> bool:
    """Whether ``forward`` takes the positions of tokens. Without, padding on the left may count as a text's beginning,
    as in decoders of BART's kind.
    """
    return "position_ids" in inspect.signature(model.forward).parameters


def within_context(
    model: PreTrainedModel, batch: Sequence[int], prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """A batch, indices of ``prompts`` by ascending length, with the number of tokens that may follow.

    Near the end of the context, which padding fills too, by lengths; so is all of a model that cannot be padded.
    """
    context = model_limits(model).context
    fits = context is None or len(prompts[batch[-1]]) + max_new_tokens <= context + 1
    if fits and is_told_positions(model):
        yield list(batch), max_new_tokens
        return
    for length, rows in groupby(batch, lambda row: len(prompts[row])):
        # The model reads a text as far as its context, and computes the token behind it.
        room = max_new_tokens if context is None else context + 1 - length
        yield list(rows), min(max_new_tokens, room)


@torch.no_grad()
def _continue_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    end: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> list[Continuation]:
    device = input_device(model)
    new_ids, mask = (torch.from_numpy(array).to(device) for array in left_padded(prompts))
    # A whole prompt's logits would be gigabytes.
    options: dict[str, Any] = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    ends = torch.tensor(sorted(end), dtype=torch.int64, device=device)
    cache = new_cache(model)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    tokens: list[Tensor] = []
    logarithms: list[Tensor] = []
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        if is_told_positions(model):
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new_ids.shape[1] :]
        logits = (
            model(input_ids=new_ids, attention_mask=mask, **with_cache(model, cache), **options).logits[:, -1].float()
        )
        if temperature > 0:
            probabilities = torch.softmax(logits / temperature, dim=-1)
            chosen = torch.multinomial(probabilities, 1, generator=generator)
        else:
            chosen = logits.argmax(dim=-1, keepdim=True)
        # Rows that have ended continue with their batch; their further tokens are dropped.
        tokens.append(chosen[:, 0])
        logarithms.append(torch.log_softmax(logits, dim=-1).gather(1, chosen)[:, 0])
        ended |= torch.isin(chosen[:, 0], ends)
        new_ids = chosen
        mask = torch.cat([mask, torch.ones_like(chosen)], dim=1)
    generated = torch.stack(tokens, dim=1).tolist()
    logarithm = in_float64(torch.stack(logarithms, dim=1))
    return [_continuation(ids, logarithm[row], end) for row, ids in enumerate(generated)]


def _continuation(ids: list[int], logarithms: Tensor, end: frozenset[int]) -> Continuation:
    finish = next((index for index, token in enumerate(ids) if token in end), None)
    length = len(ids) if finish is None else finish + 1
    return Continuation(ids[:length], finish is not None, float(logarithms[:length].mean().exp()))
