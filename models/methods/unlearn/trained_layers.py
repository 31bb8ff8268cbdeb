"""Layers that are trained already, kept by content: an interrupted fit goes on behind the last of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor

from bakeout.models.methods.lora_modules import Module
from bakeout.models.network.probe_cache import ProbeCache

_LEFT, _RIGHT, _FREE, _LOSS, _RANDOM = "left of ", "right of ", "free directions of ", "loss", "random state"


@dataclass(frozen=True)
class TrainedLayer:
    """Of the linear layers that were trained together: the matrices, the free directions, the last loss.

    ``random_state``: that of the generator of the batches, uint8, with which the next layer begins.
    """

    matrices: Module
    free_directions: Mapping[str, int]
    loss: float
    random_state: Tensor


class TrainedLayers:
    """What one fit trains, layer after layer. ``settings`` and ``texts``, token ids, are all that it depends on.

    A layer depends on all that were trained before it too, so that what it is kept under names those.
    """

    def __init__(self, cache: ProbeCache | None, settings: Mapping[str, Any], texts: Sequence[Sequence[int]]) -> None:
        # What is trained for an hour does not make room for what is probed in a minute.
        self._cache = None if cache is None else replace(cache, ending=".trained")
        versions = {package: version(package) for package in ("numpy", "peft")}
        self._settings, self._texts = {**settings, "versions": versions}, texts
        self._before = hashlib.sha256()

    def layer(self, names: Sequence[str], train: Callable[[], TrainedLayer]) -> TrainedLayer:
        """The next layer, of the linear layers ``names``: the one that is kept, or else what ``train`` gives."""
        if self._cache is None:
            return train()
        # One entry, which is there whole or not at all.
        asked = {"trained": list(names), "layers before": self._before.hexdigest(), **self._settings}
        (kept,) = self._cache.arrays([asked], self._texts, lambda: [np.frombuffer(_content(train()), np.uint8)])
        content = kept.tobytes()
        self._before.update(content)
        return _layer(names, content)


def _content(layer: TrainedLayer) -> bytes:
    """The layer in the format of safetensors."""
    tensors = {_LOSS: torch.tensor(layer.loss, dtype=torch.float64), _RANDOM: layer.random_state}
    for name, (left, right) in layer.matrices.items():
        tensors |= {_LEFT + name: left, _RIGHT + name: right, _FREE + name: torch.tensor(layer.free_directions[name])}
    return safetensors.save(tensors)


def _layer(names: Sequence[str], content: bytes) -> TrainedLayer:
    tensors = safetensors.load(content)
    return TrainedLayer(
        {name: (tensors[_LEFT + name], tensors[_RIGHT + name]) for name in names},
        {name: int(tensors[_FREE + name]) for name in names},
        float(tensors[_LOSS]),
        tensors[_RANDOM],
    )
