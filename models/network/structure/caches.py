"""The cache that a PyTorch decoder is given: what it is, and what its ``forward`` calls it."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache, PreTrainedModel


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache, with the kinds of layers that ``model`` has. It is filled in place."""
    return DynamicCache(config=model.config)


def with_cache(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments of ``model.forward`` that give it a cache: transformers 5 has renamed one."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}
