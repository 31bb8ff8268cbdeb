"""Placements on this machine: what ``from_pretrained`` takes for one, how it reads, and what a loaded model runs in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, modeling_utils

from bakeout.models.checkpoint.placement import Placement
from bakeout.models.errors import BakeoutError

# accelerate's rules for models that are larger than one device.
_RULES = ("auto", "balanced", "balanced_low_0", "sequential")


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
def mapped_tensor_by_tensor() -> Iterator[None]:
    """A context in which transformers maps a safetensors file anew for each tensor that it loads.

    It maps a whole file until its last tensor is loaded, and what was read of a mapping stays resident as long as that:
    a checkpoint that is converted to another dtype was in memory twice. A tensor that is not converted stays mapped.
    """
    module: Any = modeling_utils
    whole_file = module.safe_open
    module.safe_open = _TensorByTensor
    try:
        yield
    finally:
        module.safe_open = whole_file


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


class _TensorByTensor:
    """What ``safe_open`` gives, but for its slices."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._opening = arguments, options
        self._file: Any = safe_open(*arguments, **options)

    def __enter__(self) -> _TensorByTensor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def get_slice(self, name: str) -> Any:
        arguments, options = self._opening
        file: Any = safe_open(*arguments, **options)
        return file.get_slice(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
