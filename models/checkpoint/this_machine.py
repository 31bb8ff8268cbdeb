"""Placements on this machine: what ``from_pretrained`` takes for one, how it reads, and what a loaded model runs in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, modeling_utils

from bakeout.models.checkpoint.placement import Placement
from bakeout.models.errors import BakeoutError

# accelerate's rules for models that are larger than one device.
_RULES = ("auto", "balanced", "balanced_low_0", "sequential")
# How many elements are read of one mapping: 64 MiB in float32.
_PIECE = 1 << 24
_LOCK = Lock()
_loading = 0


def loading_options(placement: Placement) -> dict[str, Any]:
    """What ``from_pretrained`` takes for a placement. Raises ``BakeoutError`` for what this machine lacks."""
    if placement.device_map is None:
        device = _device(placement)
        elsewhere = {} if device.type == "cpu" else {"device_map": {"": device}}
        return {"dtype": _torch_dtype(placement, device.type), **elsewhere}
    if placement.device != "auto":
        raise BakeoutError("Both `device` and `device_map` are given.", "Give one of them.")
    if isinstance(placement.device_map, str) and placement.device_map not in _RULES:
        raise BakeoutError(f"There is no device map {placement.device_map!r}.", f"Give one of {', '.join(_RULES)}.")
    if find_spec("accelerate") is None:
        raise BakeoutError("`device_map` needs accelerate.", "Install it: pip install accelerate.")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = placement.device_map if isinstance(placement.device_map, str) else dict(placement.device_map)
    return {"dtype": _torch_dtype(placement, kind), "device_map": chosen}


def _device(placement: Placement) -> torch.device:
    if placement.device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Of several processes on a machine, each takes a device of its own.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(placement.device)
    except RuntimeError:
        raise BakeoutError(
            f"There is no device {placement.device!r}.", "Give auto, cpu, cuda, cuda:N or mps as `device`."
        ) from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        there = f"{count[device.type]} of that kind" if count.get(device.type) else "none of that kind"
        raise BakeoutError(
            f"This machine has no device {placement.device!r} that torch can use ({there}).",
            "Give `device: cpu` or auto, or install a torch build for it.",
        )
    return device


def _torch_dtype(placement: Placement, kind: str) -> torch.dtype:
    if placement.dtype != "auto":
        dtype: torch.dtype = getattr(torch, placement.dtype)
        return dtype
    if kind != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


@contextmanager
def mapped_piece_by_piece() -> Iterator[None]:
    """A context in which transformers maps a safetensors file anew after every few tensors.

    It maps a whole file until its last tensor is loaded, and what was read of a mapping stays resident as long as that:
    a checkpoint that is converted to another dtype was in memory twice. A tensor that is not converted stays mapped.
    Threads may load at the same time: transformers opens files as before once the last of them has left.
    """
    if not hasattr(modeling_utils, "safe_open"):
        yield
        return
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(one: int) -> None:
    global _loading
    module: Any = modeling_utils
    with _LOCK:
        _loading += one
        module.safe_open = _PieceByPiece if _loading else safe_open


def computed_in(model: PreTrainedModel) -> dict[str, Any]:
    """For the provenance: the kinds of device and the dtypes that ``model`` runs in; empty for float32 on the CPU."""
    placed = getattr(model, "hf_device_map", None) or {"": model.device}
    devices = sorted({_kind(device) for device in placed.values()})
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    return {} if (devices, dtypes) == (["cpu"], ["float32"]) else {"devices": devices, "dtypes": dtypes}


def require_weights_in_memory(model: PreTrainedModel, what: str) -> None:
    """Raise ``BakeoutError`` where weights of ``model`` are offloaded, so that they cannot be changed in place."""
    if any(weight.is_meta for weight in model.parameters()):
        raise BakeoutError(
            f"{what} changes weights, and some of this model's are offloaded.",
            "Use a `device_map` without offloading, a smaller `dtype`, or a method that changes no weights.",
        )


def _kind(device: Any) -> str:
    """``cuda`` for 0, ``cuda:1`` and so on."""
    return "cuda" if isinstance(device, int) else str(device).partition(":")[0]


class _PieceByPiece:
    """What ``safe_open`` gives, but that its tensors are read of several mappings, one after the other."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._opening = arguments, options
        self._lock = Lock()
        self._open()

    def _open(self) -> None:
        arguments, options = self._opening
        self.mapped: Any = safe_open(*arguments, **options)
        self._elements = 0

    def __enter__(self) -> _PieceByPiece:
        return self

    def __exit__(self, *exception: object) -> None:
        self.mapped.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mapped, name)

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self, name)

    def next_slice(self, name: str) -> Any:
        """A slice to be read now."""
        with self._lock:
            # Opening reads the whole header, so not for each tensor.
            if self._elements >= _PIECE:
                self._open()
            piece = self.mapped.get_slice(name)
            self._elements += math.prod(piece.get_shape())
        return piece


class _Slice:
    """A tensor that is not read yet, and keeps no mapping: transformers 5 keeps all until the last one is read."""

    def __init__(self, file: _PieceByPiece, name: str) -> None:
        self._file, self._name = file, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._file.next_slice(self._name)[index]
        return tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file.mapped.get_slice(self._name), name)
