"""The cache that a PyTorch decoder is given: what it is, and what its ``forward`` calls it."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache, PreTrainedModel

from bakeout.models.errors import BakeoutError

# Transformers 5 has renamed the argument.
_NAMES = ("cache", "past_key_values")


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache, with the kinds of layers that ``model`` has. It is filled in place."""
    # What such a configuration gives as the number of layers is the encoder's: the cache grows with the layers instead.
    return DynamicCache() if hasattr(model.config, "decoder_layers") else DynamicCache(config=model.config)


def with_cache(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments of ``model.forward`` that give it a cache. Raises ``BakeoutError`` where it takes none."""
    parameters = inspect.signature(model.forward).parameters
    for name in _NAMES:
        if name in parameters:
            return {name: cache, "use_cache": True}
    raise BakeoutError(
        f"This {model.config.model_type!r} model takes no cache: its forward has neither {' nor '.join(_NAMES)}.",
        "Use a decoder of transformers with a key-value cache.",
    )
