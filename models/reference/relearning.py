"""Relearning: what fine-tuning an edited model brings back of what it forgot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.data.rows import Record
from bakeout.models.network.devices import input_device
from bakeout.models.progress import Track, untracked

_IGNORED = -100


@dataclass(frozen=True)
class Relearned:
    """How a model answers rows.

    ``exact``: the share that it answers exactly, greedily; ``probability``: the mean probability per token of their
    responses, P^(1/tokens).
    """

    exact: float
    probability: float


def relearn(
    model: PreTrainedModel,
    trained: Sequence[Record],
    asked: Sequence[Record],
    ends: Sequence[int],
    *,
    steps: Sequence[int],
    learning_rate: float,
    batch_size: int,
    seed: int,
    track: Track = untracked,
    description: str = "relearning",
) -> Iterator[tuple[int, Relearned]]:
    """Fine-tune all weights of ``model``, in place, on the responses of ``trained``: AdamW without weight decay.

    After each number of ``steps`` it gives that number and how ``asked`` is answered. Responses end as
    ``Record.ended_ids`` says. One shuffle of the rows follows the other, seeded.
    """
    generator = torch.Generator().manual_seed(seed)
    was_trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    waiting: list[int] = []
    try:
        for step in track(range(1, max(steps) + 1), description, max(steps)):
            while len(waiting) < min(batch_size, len(trained)):
                waiting += torch.randperm(len(trained), generator=generator).tolist()
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            with torch.enable_grad():
                logits, targets = _read(model, [trained[row] for row in batch], ends)
                counted = targets != _IGNORED
                nn.functional.cross_entropy(logits[counted].float(), targets[counted]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step in steps:
                yield step, answered(model, asked, ends)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(was_trained[name])


@torch.no_grad()
def answered(
    model: PreTrainedModel, asked: Sequence[Record], ends: Sequence[int], *, batch_size: int = 32
) -> Relearned:
    """How ``model`` answers the rows, each response with its end, as in ``relearn``."""
    exact, probability = 0, 0.0
    for start in range(0, len(asked), batch_size):
        logits, targets = _read(model, asked[start : start + batch_size], ends)
        counted = targets != _IGNORED
        exact += int(((logits.argmax(dim=-1) == targets) | ~counted).all(dim=1).sum())
        logarithms = torch.log_softmax(logits.float(), dim=-1)
        chosen = logarithms.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * counted
        probability += float((chosen.sum(dim=1) / counted.sum(dim=1)).exp().sum())
    return Relearned(exact / len(asked), probability / len(asked))


def _read(model: PreTrainedModel, records: Sequence[Record], ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits [rows, longest - 1, vocabulary], and the tokens to come after each, ``_IGNORED`` outside the responses."""
    texts = [record.prompt_ids + record.ended_ids(ends) for record in records]
    input_ids, mask = map(torch.from_numpy, right_padded(texts))
    targets = input_ids.masked_fill(mask == 0, _IGNORED)
    for row, record in enumerate(records):
        targets[row, : len(record.prompt_ids)] = _IGNORED
    device = input_device(model)
    logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return logits[:, :-1], targets[:, 1:].to(logits.device)
