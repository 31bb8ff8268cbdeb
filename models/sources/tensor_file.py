"""Tensors of a safetensors file, one at a time, as float64: NumPy alone, bfloat16 included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bakeout.models.checkpoint.weight_arithmetic import EDITABLE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import open_regular, parse_json
from bakeout.models.plan import Floats

_LENGTH = 8
_READABLE = {**EDITABLE, "F64": np.dtype(np.float64)}


@dataclass(frozen=True)
class FileTensor:
    """Where a tensor lies: its file, from which byte on; ``dtype`` as safetensors names it."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def content(self) -> NDArray[np.uint8]:
        """Its bytes."""
        return np.fromfile(self.file, dtype=np.uint8, count=self.end - self.start, offset=self.start)

    def stored(self) -> NDArray[Any]:
        """Its values in the type that they are stored in. Raises ``BakeoutError`` for types that are no floats."""
        if (dtype := _READABLE.get(self.dtype)) is None:
            raise BakeoutError(
                f"{self.file}: {self.name} is stored as {self.dtype}; {', '.join(_READABLE)} can be read.",
                "Save it in one of these types.",
            )
        values: NDArray[Any] = self.content().view(dtype).reshape(self.shape)
        return values

    def values(self) -> Floats:
        """Its values. Raises ``BakeoutError`` as ``stored``, and where one is not a finite number."""
        values: Floats = self.stored().astype(np.float64)
        if not np.isfinite(values).all():
            raise BakeoutError(f"{self.file}: {self.name} holds NaN or infinite values.", "Use a sound file.")
        return values


def read_tensors(path: Path) -> Mapping[str, FileTensor]:
    """The tensors of a file by their names; no value is read. Raises ``BakeoutError`` for what is no whole file."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            with safe_open(path, framework="numpy"):
                pass
            header: dict[str, Any] = parse_json(file.read(length))
    except OSError as error:
        raise BakeoutError(f"{path} cannot be read ({error.strerror or error}).", "Check the path.") from None
    except (SafetensorError, ValueError) as error:
        raise BakeoutError(f"{path} is not a whole safetensors file ({error}).", "Copy it again.") from None
    start = _LENGTH + length
    return {
        name: FileTensor(
            path,
            name,
            str(entry["dtype"]),
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
