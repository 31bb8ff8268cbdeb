"""Training LoRA modules: gradients of a batch of texts that goes through the model in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.network.devices import tokens_at_once
from bakeout.models.network.probing import batches_by_length


def gradients_in_parts(
    model: PreTrainedModel,
    lengths: Sequence[int],
    weights: Sequence[Tensor],
    loss_of: Callable[[Sequence[int]], Tensor],
) -> tuple[float, list[Tensor | None]]:
    """The loss of texts and its gradient with respect to each of ``weights``; None where it does not hang on one.

    ``lengths``: the texts' tokens; ``loss_of``: what some of them, by their numbers, add to the loss. A part holds as
    many tokens as a forward pass does (``tokens_at_once``), and texts of like lengths: what autograd keeps of a pass
    takes many times the memory of its activations, and padding is computed like text.
    """
    total = 0.0
    sums: list[Tensor | None] = [None] * len(weights)
    for part in batches_by_length(lengths, len(lengths), most_tokens=tokens_at_once(model)):
        with torch.enable_grad():
            loss = loss_of(part)
            # An expert that none of these tokens is sent to has no gradient.
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        total += float(loss.detach())
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                known = sums[place]
                sums[place] = gradient if known is None else known + gradient
    return total, sums
