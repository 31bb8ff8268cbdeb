"""Key vectors of all tokens, prompt by prompt: what no memory holds for a data set at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.probing import Batch, require_layers, require_prompts, run_shared
from bakeout.models.plan import Keys
from bakeout.models.progress import Track, untracked

Result = TypeVar("Result")


def reduced_token_keys(
    reduce: Callable[[NDArray[np.float32]], Result],
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    keys: Keys = "key_vector",
    batch_size: int = 8,
    track: Track = untracked,
) -> list[Result]:
    """``reduce`` of each prompt's token keys, which are of ``layers`` side by side: float32 [tokens, layers * F].

    One batch of keys is held at a time. Raises as ``probe_keys``.
    """
    available = key_sites(model, keys)
    require_layers(layers, len(available))
    require_prompts(prompts)
    gathered: dict[int, Tensor] = {}

    def gather(layer: int) -> Callable[[Any], None]:
        def read(key: Tensor) -> None:
            # Layers can be on several devices.
            gathered[layer] = available[layer].key(key.detach()).float().cpu()

        return read

    def reduced(batch: Batch) -> list[tuple[int, Result]]:
        count, width = batch.input_ids.shape
        joint = torch.cat([gathered[layer].reshape(count, width, -1) for layer in layers], dim=-1).numpy()
        lengths = batch.attention_mask.sum(dim=1).tolist()
        return [
            (prompt, reduce(joint[row, :length]))
            for row, (prompt, length) in enumerate(zip(batch.rows, lengths, strict=True))
        ]

    batches = run_shared(
        reduced,
        model,
        prompts,
        inputs={available[layer].module: gather(layer) for layer in layers},
        batch_size=batch_size,
        description="probing key vectors",
        track=track,
    )
    by_prompt = dict(pair for batch in batches for pair in batch)
    return [by_prompt[prompt] for prompt in range(len(prompts))]
