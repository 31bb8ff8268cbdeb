"""The cache of a decoder graph: which output feeds which input of the next step, and what an empty one looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.models.errors import BakeoutError

TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


@dataclass(frozen=True)
class CacheEntry:
    """A past input and the present output of the same layer and kind; ``heads`` and ``size`` of its tensor."""

    past: str
    present: str
    heads: int
    size: int
    dtype: type[np.generic]


def cache_entries(inputs: Mapping[str, Any], outputs: Mapping[str, Any], path: Path) -> list[CacheEntry]:
    """The graph's past inputs, each with the present output of the same layer and kind, in the outputs' order."""
    past = {_layer_and_kind(name): value for name, value in inputs.items() if _layer_and_kind(name)}
    entries = []
    for name in outputs:
        layer_and_kind = _layer_and_kind(name)
        if layer_and_kind is None or layer_and_kind not in past:
            continue
        value = past.pop(layer_and_kind)
        if len(value.shape) != 4 or not all(isinstance(size, int) for size in (value.shape[1], value.shape[3])):
            raise BakeoutError(
                f"{path}: the cache {value.name} has shape {value.shape}, not [batch, heads, past, head size] with "
                "known heads and head size.",
                "Export the model with optimum.",
            )
        if value.type not in TYPES:
            raise BakeoutError(f"{path}: the cache {value.name} is a {value.type}.", "Export it in fp32 or fp16.")
        entries.append(CacheEntry(value.name, name, value.shape[1], value.shape[3], TYPES[value.type]))
    if past:
        missing = ", ".join(value.name for value in past.values())
        raise BakeoutError(f"{path} gives nothing to feed back as {missing}.", "Export the model with optimum.")
    return entries


def _layer_and_kind(name: str) -> tuple[int, str] | None:
    """(3, "key") of ``past_key_values.3.key``, ``present.3.key`` and the like."""
    match = re.fullmatch(r"(?:past|present)\w*\.(\d+)\.(?:\w+\.)?(key|value)", name)
    return (int(match[1]), match[2]) if match else None
