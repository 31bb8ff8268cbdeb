"""Where a PyTorch model runs and in which type: what is asked for. Recipes are read with this, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bakeout.models.errors import BakeoutError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = str | Mapping[str, str | int]


@dataclass(frozen=True)
class Placement:
    """Where and how a model is loaded.

    ``device``: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. ``dtype``:
    ``auto`` is float32 on the CPU and MPS, bfloat16 on CUDA, or float16 where the device lacks that. ``device_map``:
    accelerate's, for models larger than one device: a rule, or modules and the device of each (``disk`` is one).

    Raises ``BakeoutError`` for another dtype.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    device_map: DeviceMap | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise BakeoutError(f"There is no dtype {self.dtype!r}.", f"Choose one of {', '.join(get_args(Dtype))}.")

    def changed(self, **given: Any) -> Placement:
        """The same with the options that are given and not None: a device replaces a device map, and the reverse."""
        given = {name: value for name, value in given.items() if value is not None}
        if "device" in given:
            given.setdefault("device_map", None)
        elif "device_map" in given:
            given["device"] = "auto"
        return replace(self, **given)


# What everything baked is held against runs like this unless it is asked to run elsewhere.
REFERENCE = Placement("cpu", "float32")
