"""What a PyTorch decoder keeps from step to step, as tensors with the names that they have in a graph.

Attention layers keep keys and values, [batch, heads, slots, head size]; recurrent and convolutional ones, states of a
fixed size, which are zero at first. The names are those of optimum and of onnxruntime-genai's builder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from bakeout.models.network.structure.caches import new_cache, with_cache

_STATES = {"conv_states": "conv", "recurrent_states": "recurrent"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a cache: the layer's number, what holds it there, and the state's number where there are several.

    ``holder``: ``keys``, ``values``, ``conv_states`` or ``recurrent_states``.
    """

    layer: int
    holder: str
    state: int = 0

    @property
    def grows(self) -> bool:
        """Whether it has a slot for every token."""
        return self.holder not in _STATES

    def name(self, side: str) -> str:
        """What it is called as an input (``side`` past) or output (present) of a graph."""
        if self.grows:
            prefix = "past_key_values" if side == "past" else side
            return f"{prefix}.{self.layer}.{self.holder.removesuffix('s')}"
        suffix = f".{self.state}" if self.state else ""
        return f"{side}_{_STATES[self.holder]}.{self.layer}{suffix}"

    def tensor(self, cache: Any) -> Tensor:
        """It, in a cache."""
        held = getattr(cache.layers[self.layer], self.holder)
        tensor: Tensor = held if self.grows else held[self.state]
        return tensor


def unwindowed_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of ``model`` in which every attention layer keeps every token, sliding windows too."""
    cache = new_cache(model)
    for index, layer in enumerate(cache.layers):
        if getattr(layer, "is_sliding", False):
            cache.layers[index] = DynamicLayer()
    return cache


def entries(cache: DynamicCache) -> list[Entry]:
    """The tensors of a cache that a model has filled, layer by layer."""
    return [entry for layer in range(len(cache.layers)) for entry in _of_layer(layer, cache.layers[layer])]


def _of_layer(number: int, layer: Any) -> Iterator[Entry]:
    for holder in ("keys", "values"):
        if isinstance(getattr(layer, holder, None), Tensor):
            yield Entry(number, holder)
    for holder in _STATES:
        states = getattr(layer, holder, None) or {}
        for state in range(len(states)):
            if isinstance(states[state], Tensor):
                yield Entry(number, holder, state)


def filled_cache(model: PreTrainedModel, kept: list[Entry], tensors: list[Tensor]) -> DynamicCache:
    """A cache that holds ``tensors``, those of ``kept`` after an earlier step or before the first."""
    cache = unwindowed_cache(model)
    for entry, tensor in zip(kept, tensors, strict=True):
        while len(cache.layers) <= entry.layer:
            cache.layers.append(DynamicLayer())
        layer: Any = cache.layers[entry.layer]
        layer.dtype, layer.device = tensor.dtype, tensor.device
        if entry.grows:
            setattr(layer, entry.holder, tensor)
            layer.is_initialized = True
            continue
        # Models write into their states.
        getattr(layer, entry.holder)[entry.state] = tensor.clone()
        getattr(layer, f"is_{entry.holder}_initialized")[entry.state] = True
        layer.has_previous_state[entry.state] = True
        if entry.holder == "conv_states":
            layer.conv_kernel_size[entry.state] = tensor.shape[-1]
    return cache


def kept_by(model: PreTrainedModel, tokens: int) -> tuple[list[Entry], list[Tensor]]:
    """What ``model`` keeps of two rows of ``tokens`` tokens."""
    with torch.no_grad():
        ids = torch.ones(2, tokens, dtype=torch.long)
        cache = unwindowed_cache(model)
        model(input_ids=ids, attention_mask=ids, **with_cache(model, cache))
    kept = entries(cache)
    return kept, [entry.tensor(cache).clone() for entry in kept]
