"""Directions of the residual stream in files: control vectors (repeng, llama.cpp) and refusal or concept directions.

A GGUF file of architecture ``controlvector`` has a tensor ``direction.{layer}`` for each block behind which it acts,
counted from 0, as repeng and llama.cpp write and read them. A safetensors file has such tensors too, or one tensor:
[layers, hidden], a row a block, or [hidden], for blocks that are named beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.models.checkpoint.gguf.gguf_header import MAGIC, GgufTensor, read_gguf_header
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import open_regular
from bakeout.models.plan import Floats, LayerDirection, ModelIdentity, ResidualAddition, ResidualProjection
from bakeout.models.sources.source import none_matched, not_carried, read_report
from bakeout.models.sources.tensor_file import read_tensors

_ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(0|[1-9]\d{0,5})")
# The numbers of the types of GGUF tensors that are plain floats.
_TYPES: Mapping[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}

Directions = dict[int, Floats]


def read_addition(
    path: Path,
    model: ModelIdentity,
    scale: float = 1.0,
    *,
    layers: Sequence[int] | None = None,
    keep_norm: bool = False,
) -> ResidualAddition:
    """A control vector: ``scale`` is the coefficient; ``layers``: behind which blocks the one direction is added.

    Raises ``BakeoutError`` for what is no control vector of ``model``.
    """
    directions, read = _read(path, model, layers)
    vectors = tuple(LayerDirection(layer, _single(path, vector)) for layer, vector in directions.items())
    report = read_report("control vector", [path], scale, read)
    return ResidualAddition(vectors, float(scale), keep_norm, report)


def read_projection(path: Path, model: ModelIdentity, *, layers: Sequence[int] | None = None) -> ResidualProjection:
    """Directions to project out, scaled to norm 1. As ``read_addition``; one direction acts behind all blocks."""
    directions, read = _read(
        path, model, layers if layers is not None else range(model.layers), any_form=layers is None
    )
    vectors = tuple(
        LayerDirection(layer, _single(path, vector / np.linalg.norm(vector))) for layer, vector in directions.items()
    )
    return ResidualProjection(vectors, read_report("direction", [path], 1.0, read))


def _read(
    path: Path, model: ModelIdentity, layers: Sequence[int] | None, *, any_form: bool = False
) -> tuple[Directions, list[dict[str, Any]]]:
    """The directions by layer, ascending, without those that are zero; and the receipt of all.

    ``layers``: of one direction; with ``any_form`` they are ignored where the file has its own.
    """
    named = _of_gguf(path, model) if _is_gguf(path) else _of_safetensors(path)
    if list(named) == [None]:
        if layers is None:
            raise BakeoutError(f"{path} holds one direction, and no blocks are named.", "Name them as `layers`.")
        named = dict.fromkeys(sorted(set(layers)), named[None])
    elif layers is not None and not any_form:
        raise BakeoutError(f"{path} has directions of its own blocks.", "Leave out `layers`.")
    directions: Directions = {}
    read = []
    for layer, vector in sorted(named.items(), key=lambda item: item[0] or 0):
        assert layer is not None, "one direction has got its layers"
        if layer >= model.layers or vector.shape != (model.hidden,):
            raise BakeoutError(
                f"{path}: the direction of layer {layer} has the shape {vector.shape}; the base model has "
                f"{model.layers} layers and a residual stream of {model.hidden}.",
                "Name the model that it was made for.",
            )
        norm = float(np.linalg.norm(vector))
        read.append({"layer": layer, "norm": float(f"{norm:.6g}")})
        if norm > 0:
            directions[layer] = vector
    if not directions:
        raise none_matched(path, "no direction that is not zero")
    return directions, read


def _is_gguf(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise BakeoutError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from None


def _of_gguf(path: Path, model: ModelIdentity) -> dict[int | None, Floats]:
    header = read_gguf_header(path)
    architecture = header.text("general.architecture")
    if architecture != _ARCHITECTURE:
        raise BakeoutError(
            f"{path} is a GGUF file of {architecture!r}, not a control vector.", "Name a control vector."
        )
    directions: dict[int | None, Floats] = {}
    for name, tensor in header.tensors.items():
        if (match := _NAME.fullmatch(name)) is None:
            raise not_carried(path, f"it holds {name!r}", "Name a control vector.")
        if tensor.shape != (model.hidden,):
            raise BakeoutError(
                f"{path}: {name} has the shape {tensor.shape}, and the base model a residual stream of {model.hidden}.",
                "Name the model that it was made for.",
            )
        directions[int(match[1])] = _gguf_values(path, name, tensor, header.data)
    return directions


def _gguf_values(path: Path, name: str, tensor: GgufTensor, data: int) -> Floats:
    if (dtype := _TYPES.get(tensor.quantisation)) is None:
        raise not_carried(path, f"{name} is of GGUF type {tensor.quantisation}", "Write the vector in float32.")
    size = tensor.elements * dtype.itemsize
    with open_regular(path) as file:
        whole = file.read()
    content = whole[data + tensor.offset :][:size]
    if len(content) != size:
        raise BakeoutError(f"{path} is cut short.", "Copy it again.")
    values: Floats = _finite(path, name, np.frombuffer(content, dtype).astype(np.float64))
    return values


def _of_safetensors(path: Path) -> dict[int | None, Floats]:
    tensors = read_tensors(path)
    matches = {name: _NAME.fullmatch(name) for name in tensors}
    if tensors and all(matches.values()):
        return {int(match[1]): tensors[name].values() for name, match in matches.items() if match}
    if len(tensors) != 1:
        odd = next((name for name, match in matches.items() if match is None), "nothing")
        raise not_carried(path, f"it holds {len(tensors)} tensors, among them {odd}", "Save the directions alone.")
    (tensor,) = tensors.values()
    values = tensor.values()
    if values.ndim == 1:
        return {None: values}
    if values.ndim != 2:
        raise BakeoutError(
            f"{path}: {tensor.name} has the shape {values.shape}, neither [layers, hidden] nor [hidden].",
            "Save one row a layer.",
        )
    return dict(enumerate(values))


def _single(path: Path, vector: Floats) -> Any:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(_finite(path, "a direction", vector.astype(np.float32)))


def _finite(path: Path, name: str, values: Any) -> Any:
    if not np.isfinite(values).all():
        raise BakeoutError(
            f"{path}: {name} holds NaN or infinite values, or leaves the range of float32.", "Use a sound file."
        )
    return values
