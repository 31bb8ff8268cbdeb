"""Key vectors of all tokens, prompt by prompt: what no memory holds for a data set at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.network.families import feed_forward_layers
from bakeout.models.network.probing import require_layers, require_prompts, run_batches
from bakeout.models.progress import Track, untracked


def token_keys(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    batch_size: int = 8,
    track: Track = untracked,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each prompt's index, and its tokens' keys of ``layers`` side by side: float32 [tokens, layers * F].

    One batch is held at a time, whose prompts come in no particular order. Raises as ``probe_keys``.
    """
    available = feed_forward_layers(model)
    require_layers(layers, len(available))
    require_prompts(prompts)
    gathered: dict[int, Tensor] = {}

    def gather(layer: int) -> Callable[[Any], None]:
        def read(key: Tensor) -> None:
            # Layers can be on several devices.
            gathered[layer] = key.detach().float().cpu()

        return read

    for batch in run_batches(
        model,
        prompts,
        inputs={available[layer].down: gather(layer) for layer in layers},
        batch_size=batch_size,
        description="probing key vectors",
        track=track,
    ):
        count, width = batch.input_ids.shape
        keys = torch.cat([gathered[layer].reshape(count, width, -1) for layer in layers], dim=-1)
        for row, (prompt, length) in enumerate(zip(batch.rows, batch.attention_mask.sum(dim=1).tolist(), strict=True)):
            yield prompt, keys[row, :length].numpy()
