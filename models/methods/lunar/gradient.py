"""LUNAR's own way to its weights: descent on squared errors (arXiv 2502.07218, appendix and authors' code)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bakeout.models.methods.lunar.options import GradientOptions
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked


def descend(
    keys: NDArray[np.float32],
    changes: NDArray[np.float32],
    options: GradientOptions,
    *,
    seed: int,
    track: Track = untracked,
) -> tuple[Floats, list[float]]:
    """The change dW [hidden, F] with dW h ~ d, from dW = 0, and the mean squared error of every epoch.

    ``keys`` [n, F] and ``changes`` [n, hidden] are the rows h and d. AdamW, whose rate is multiplied by ``decay``
    after each epoch, over shuffled batches. Without weight decay, our reading: it would shrink weights that no row
    asks to change. The draws follow from ``seed``; torch's own generator is not touched.
    """
    inputs, targets = torch.from_numpy(keys), torch.from_numpy(changes)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    with torch.inference_mode(False), torch.enable_grad():
        change = torch.zeros(targets.shape[1], inputs.shape[1], requires_grad=True)
        optimiser = torch.optim.AdamW([change], lr=options.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, options.decay)
        for _ in track(range(options.epochs), "descending", options.epochs):
            total = 0.0
            for batch in torch.randperm(len(inputs), generator=generator).split(options.rows):
                optimiser.zero_grad()
                loss = torch.nn.functional.mse_loss(inputs[batch] @ change.T, targets[batch])
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(batch)
            schedule.step()
            losses.append(total / len(inputs))
    return change.detach().double().numpy(), losses
