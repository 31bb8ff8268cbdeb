"""Llama 3's stretched rotary positions: GGUF files hold their factors as a tensor, which transformers does not read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.models.checkpoint.gguf.gguf_header import GgufHeader
from bakeout.models.errors import BakeoutError

FACTORS = "rope_freqs.weight"
# What Llama 3.1 and 3.2 were made with; only the factor differs.
_LOW, _HIGH, _CONTEXT = 1.0, 4.0, 8192
_KNOWN = (8.0, 32.0)


def rope_scaling(path: Path, header: GgufHeader) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a configuration that gives the file's factors; None where it has none, or all are 1.

    Raises ``BakeoutError`` for factors of another making.
    """
    tensor = header.tensors.get(FACTORS)
    if tensor is None:
        return None
    with path.open("rb") as file:
        file.seek(header.data + tensor.offset)
        factors = np.frombuffer(file.read(4 * tensor.elements), dtype="<f4")
    if np.all(factors == 1):
        return None
    base = header.metadata.get(f"{header.text('general.architecture')}.rope.freq_base", 10000.0)
    for factor in _KNOWN:
        if np.allclose(factors, _llama3_factors(float(base), 2 * tensor.elements, factor), rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": _CONTEXT,
            }
    raise BakeoutError(
        f"{path} stretches its rotary positions in a way that is not known ({FACTORS}).",
        "Name the model's safetensors checkpoint.",
    )


def scale_positions(config: Any, scaling: dict[str, Any]) -> None:
    """Write ``rope_scaling`` into a model's configuration: transformers 5 keeps it beside the base of the positions."""
    if (parameters := getattr(config, "rope_parameters", None)) is None:
        config.rope_scaling = scaling
    else:
        config.rope_parameters = {**parameters, **scaling}


def _llama3_factors(base: float, size: int, factor: float) -> list[float]:
    """By how much each frequency of a head of ``size`` is divided: long waves by ``factor``, short ones not at all."""
    factors = []
    for place in range(0, size, 2):
        wave = 2 * math.pi * base ** (place / size)
        if wave < _CONTEXT / _HIGH:
            factors.append(1.0)
        elif wave > _CONTEXT / _LOW:
            factors.append(factor)
        else:
            smooth = (_CONTEXT / wave - _LOW) / (_HIGH - _LOW)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
