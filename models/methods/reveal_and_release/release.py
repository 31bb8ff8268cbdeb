"""Release (arXiv 2509.14624): low-rank modules trained on data, and kept in subspaces of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.padding import right_padded
from bakeout.models.methods.lora_modules import Module, adapted
from bakeout.models.methods.lora_training import gradients_in_parts
from bakeout.models.methods.reveal_and_release.options import ReleaseOptions
from bakeout.models.network.devices import input_device
from bakeout.models.progress import Track, untracked

_IGNORED = -100


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt and of the answer that the model is trained to give, with the end-of-text token."""

    prompt_ids: list[int]
    answer_ids: list[int]


def train_module(
    model: PreTrainedModel,
    texts: Sequence[Text],
    previous: Sequence[Module],
    *,
    softening: float,
    options: ReleaseOptions,
    seed: int,
    description: str,
    with_experts: bool = False,
    track: Track = untracked,
) -> tuple[Module, float]:
    """A LoRA module on all FFL weights that makes the answers of ``texts`` more probable, and its last loss.

    ``with_experts``: on those of a mixture's experts too.

        loss = cross-entropy(logits / softening, answers) + mu * sum over weights and previous of |A_previous A^T|_1

    The second term is O-LoRA's. ``softening`` is our reading: a model is confident of what it has revealed itself, so
    its likelihood has almost no gradient, and most of that comes from the few tokens of which it is not confident.
    With logits divided by 4, for example, every token counts, and the module raises all margins. The model is
    restored.
    """
    rows = _batches(len(texts), options, seed)
    with adapted(model, options.rank, seed, with_experts=with_experts) as adapters:
        trained = [weight for left, right in adapters.values() for weight in (left, right)]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
        loss = 0.0
        for batch in track(rows, description, len(rows)):
            loss, gradients = _gradients(model, [texts[row] for row in batch], softening, trained)
            for weight, gradient in zip(trained, gradients, strict=True):
                weight.grad = gradient
            if previous:
                with torch.enable_grad():
                    (options.orthogonality * overlap(adapters, previous)).backward()
            optimizer.step()
        module = {
            name: (left.detach().float().cpu().clone(), right.detach().float().cpu().clone())
            for name, (left, right) in adapters.items()
        }
    return module, loss


def overlap(module: Module, previous: Sequence[Module]) -> Tensor:
    """O-LoRA's sum over weights and previous modules of |A_previous A^T|_1."""
    total = torch.zeros(())
    for earlier in previous:
        for name, (_, right) in module.items():
            total = total + (earlier[name][1].to(right) @ right.T).abs().sum()
    return total


@torch.no_grad()
def reproduced(model: PreTrainedModel, texts: Sequence[Text], *, batch_size: int = 64) -> list[bool]:
    """Whether the model's greedy answer is exactly the text's: every token is its first choice."""
    exact = []
    for start in range(0, len(texts), batch_size):
        logits, targets = _answered(model, texts[start : start + batch_size])
        correct = (logits.argmax(dim=-1) == targets) | (targets == _IGNORED)
        exact += correct.all(dim=1).tolist()
    return exact


def _gradients(
    model: PreTrainedModel, texts: Sequence[Text], softening: float, weights: Sequence[Tensor]
) -> tuple[float, list[Tensor | None]]:
    """The cross-entropy of the answers' tokens, a mean, and its gradients."""
    lengths = [len(text.prompt_ids) + len(text.answer_ids) for text in texts]
    tokens = sum(len(text.answer_ids) for text in texts)

    def loss_of(part: Sequence[int]) -> Tensor:
        logits, targets = _answered(model, [texts[row] for row in part])
        counted = targets != _IGNORED
        logits = logits[counted].float() / softening
        return nn.functional.cross_entropy(logits, targets[counted], reduction="sum") / tokens

    return gradients_in_parts(model, lengths, weights, loss_of)


def _answered(model: PreTrainedModel, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Logits [texts, longest - 1, vocabulary] and the tokens to come after each, ``_IGNORED`` outside the answers."""
    input_ids, mask = map(torch.from_numpy, right_padded([text.prompt_ids + text.answer_ids for text in texts]))
    targets = torch.full_like(input_ids, _IGNORED)
    for row, text in enumerate(texts):
        start = len(text.prompt_ids)
        targets[row, start : start + len(text.answer_ids)] = torch.tensor(text.answer_ids)
    device = input_device(model)
    logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return logits[:, :-1], targets[:, 1:].to(logits.device)


def _batches(texts: int, options: ReleaseOptions, seed: int) -> list[list[int]]:
    """Rows of each step: one shuffle of the texts after the other, cut into batches."""
    generator = torch.Generator().manual_seed(seed)
    needed = options.steps * min(options.batch_size, texts)
    rows: list[int] = []
    while len(rows) < needed:
        rows += torch.randperm(texts, generator=generator).tolist()
    size = min(options.batch_size, texts)
    return [rows[start : start + size] for start in range(0, needed, size)]
