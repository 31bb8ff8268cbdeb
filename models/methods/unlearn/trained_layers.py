"""Layers that are trained already, kept by content: an interrupted fit goes on behind the last of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bakeout.models.methods.lora_modules import Module
from bakeout.models.network.probe_cache import Array, ProbeCache


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
        self._cache, self._settings, self._texts = cache, settings, texts
        self._before = hashlib.sha256()

    def layer(self, names: Sequence[str], train: Callable[[], TrainedLayer]) -> TrainedLayer:
        """The next layer, of the linear layers ``names``: the one that is kept, or else what ``train`` gives."""
        if self._cache is None:
            return train()
        sides = [f"{side} of {name}" for name in names for side in ("left", "right")]
        described = {"layers before": self._before.hexdigest(), **self._settings}
        asked = [{"trained": what, **described} for what in (*sides, "free directions", "loss", "random state")]
        kept = self._cache.arrays(asked, self._texts, lambda: _arrays(names, train()))
        *matrices, free, loss, random_state = (np.array(array) for array in kept)
        for matrix in matrices:
            self._before.update(matrix.tobytes())
        pairs = zip(matrices[::2], matrices[1::2], strict=True)
        return TrainedLayer(
            {
                name: (torch.from_numpy(left), torch.from_numpy(right))
                for name, (left, right) in zip(names, pairs, strict=True)
            },
            dict(zip(names, free.tolist(), strict=True)),
            float(loss[0]),
            torch.from_numpy(random_state),
        )


def _arrays(names: Sequence[str], layer: TrainedLayer) -> list[Array]:
    matrices = [matrix.numpy() for name in names for matrix in layer.matrices[name]]
    free = np.array([layer.free_directions[name] for name in names])
    return [*matrices, free, np.array([layer.loss]), layer.random_state.numpy()]
