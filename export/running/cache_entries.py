"""The cache of a decoder graph: which output feeds which input of the next step, and what an empty one looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.graph_passes.graph.exporter_names import past_name, present_name
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


# Slots that a window's cache has beyond the window, as onnxruntime-genai allocates them on the CPU.
_SLACK = 16


@dataclass(frozen=True)
class CacheEntry:
    """A past input and the present output of the same thing; ``shape`` of an empty one, but for the batch."""

    past: str
    present: str
    shape: tuple[int, ...]
    dtype: type[np.generic]

    def empty(self, batch: int) -> NDArray[np.generic]:
        """The entry at the start of ``batch`` texts."""
        return np.zeros((batch, *self.shape), self.dtype)


@dataclass(frozen=True)
class ToldSizes:
    """What ``genai_config.json`` tells of caches, where the graph may leave it open; None is unknown.

    ``window``: how far local attention looks back, where caches hold no more than that; ``head``: the head size.
    """

    window: int | None = None
    head: int | None = None


def cache_entries(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], path: Path, told: ToldSizes
) -> list[CacheEntry]:
    """The graph's past inputs, each with the present output of the same layer and kind, in the outputs' order."""
    past = {name: value for value in inputs.values() if (name := past_name(value.name)) is not None}
    entries = []
    for output in outputs:
        name = present_name(output)
        if name is None or name not in past:
            continue
        value = past.pop(name)
        if value.type not in TYPES:
            raise BakeoutError(f"{path}: the cache {value.name} is a {value.type}.", "Export it in fp32 or fp16.")
        shape = _empty_shape(value, path, told, holds_tokens=name.is_key_or_value)
        entries.append(CacheEntry(value.name, output, shape, TYPES[value.type]))
    if missing := [value.name for name, value in past.items() if name.is_key_or_value]:
        raise BakeoutError(
            f"{path} gives nothing to feed back as {', '.join(missing)}.", "Export the model with optimum."
        )
    return entries


def _empty_shape(value: Any, path: Path, told: ToldSizes, *, holds_tokens: bool) -> tuple[int, ...]:
    # transformers' exporter gives sizes as names, such as "8".
    sizes = [int(size) if isinstance(size, str) and size.isdecimal() else size for size in value.shape][1:]
    if holds_tokens and len(sizes) == 3:
        sizes[1] = told.window + _SLACK if told.window is not None and sizes[1] == "past_sliding_length" else 0
        if not isinstance(sizes[2], int) and told.head is not None:
            sizes[2] = told.head
    is_known = bool(value.shape) and all(isinstance(size, int) for size in sizes)
    if not is_known or (holds_tokens and len(sizes) != 3):
        raise BakeoutError(
            f"{path}: the cache {value.name} has shape {value.shape}, not [batch, heads, past, head size] with "
            "known heads and head size.",
            "Export the model with optimum.",
        )
    return tuple(sizes)


def told_sizes(directory: Path) -> ToldSizes:
    """What the ``genai_config.json`` beside a graph tells of its caches."""
    model = read_json(directory / "genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(decoder, dict):
        return ToldSizes()
    window = decoder.get("sliding_window")
    return ToldSizes(
        _size(window.get("window_size") if isinstance(window, dict) else None), _size(decoder.get("head_size"))
    )


def _size(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**24 else None
