"""Stretched rotary positions: of what GGUF files say of them, transformers reads nothing.

Llama 3's are a tensor of factors; `linear` and `yarn` are named by the metadata, and computed alike by llama.cpp
(llama-context.cpp and ggml's rope_yarn) and transformers (modeling_rope_utils.py, 4.57).
"""

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
# What yarn is refined by, as a file and as a configuration name it.
_YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
# Other settings of llama.cpp, and what they are where they do nothing.
_NEUTRAL = {"attn_factor": 1, "yarn_attn_factor": 1, "yarn_ext_factor": 1, "yarn_log_multiplier": 0}


def rope_scaling(path: Path, header: GgufHeader) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a configuration that stretches positions as the file does; None where it does not.

    Raises ``BakeoutError`` for factors of another making, and for settings that no configuration has.
    """
    by_factors, named = _by_factors(path, header), _named(path, header)
    if by_factors and named:
        raise _unknown(path, f"{FACTORS} and {named['rope_type']}")
    return by_factors or named


def _named(path: Path, header: GgufHeader) -> dict[str, Any] | None:
    """What the metadata names."""
    architecture = header.text("general.architecture")
    prefix = f"{architecture}.rope.scaling."
    settings = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    # llama.cpp takes a factor without a type for a linear one, and reads files that name it as it once did.
    kind = settings.get("type", "linear")
    factor = float(settings.get("factor", header.metadata.get(f"{architecture}.rope.scale_linear", 0)))
    if others := [key for key, neutral in _NEUTRAL.items() if settings.get(key, neutral) != neutral]:
        raise _unknown(path, prefix + others[0])
    if kind == "none" or factor in (0, 1):
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        return {
            "rope_type": kind,
            "factor": factor,
            **{name: settings[key] for key, name in _YARN.items() if key in settings},
        }
    raise _unknown(path, f"{prefix}type {kind}")


def _by_factors(path: Path, header: GgufHeader) -> dict[str, Any] | None:
    """What the tensor of factors says; None where there is none, or all are 1."""
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
    raise _unknown(path, FACTORS)


def _unknown(path: Path, what: str) -> BakeoutError:
    return BakeoutError(
        f"{path} stretches its rotary positions in a way that is not known ({what}).",
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
