"""Random residual additions and projections for tiny models, large enough to change what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import LayerDirection, ResidualAddition, ResidualProjection
from bakeout.models.plan.kinds.report import RetainReport

LAYERS = (0, 2, 3)


def _directions(model: PreTrainedModel, layers: Sequence[int], seed: int) -> tuple[LayerDirection, ...]:
    random = np.random.default_rng(seed)
    hidden = feed_forward_layers(model)[0].hidden
    vectors = random.normal(size=(len(layers), hidden))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return tuple(
        LayerDirection(layer, vector.astype(np.float32)) for layer, vector in zip(layers, vectors, strict=True)
    )


def _stream_norm(model: PreTrainedModel, layer: int) -> float:
    """The mean norm of the residual stream behind a block, on a few tokens."""
    norms: list[float] = []

    def read(module: object, arguments: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        norms.append(float(stream.norm(dim=-1).mean()))

    handle = feed_forward_layers(model)[layer].block.register_forward_hook(read)
    with torch.no_grad():
        model(torch.arange(2, 40)[None])
    handle.remove()
    return norms[0]


def residual_addition(
    model: PreTrainedModel, *, layers: Sequence[int] = LAYERS, keep_norm: bool = False, seed: int = 0
) -> ResidualAddition:
    """Directions as long as the stream in the first layer is."""
    coefficient = _stream_norm(model, layers[0])
    directions = _directions(model, layers, seed)
    return ResidualAddition(directions, coefficient, keep_norm, RetainReport(details={"seed": seed}))


def residual_projection(model: PreTrainedModel, *, layers: Sequence[int] = LAYERS, seed: int = 1) -> ResidualProjection:
    """Unit vectors along the stream of some token, so that much is projected out."""
    streams: dict[int, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
    handles = []
    for layer in layers:

        def read(module: object, arguments: object, output: object, layer: int = layer) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            assert isinstance(stream, torch.Tensor)
            vector = stream[0, -1].double().numpy()
            streams[layer] = (vector / np.linalg.norm(vector)).astype(np.float32)

        handles.append(feed_forward_layers(model)[layer].block.register_forward_hook(read))
    with torch.no_grad():
        model(torch.from_numpy(np.random.default_rng(seed).integers(2, 258, (1, 8))))
    for handle in handles:
        handle.remove()
    return ResidualProjection(tuple(LayerDirection(layer, streams[layer]) for layer in layers))
