"""The header of a GGUF file: its metadata and what its tensors are. Checked against the file's size, without NumPy.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

from bakeout.models.data.tokenizers.token_lengths import LONGEST_TOKEN
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import open_regular

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
# Types of values by number, as struct writes them; strings and arrays are read apart.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class GgufTensor:
    """``quantisation``: its number; ``offset``: of its data behind those of the first tensor, in bytes."""

    shape: tuple[int, ...]
    quantisation: int
    offset: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """``metadata``: all values but arrays; ``tensors`` by name; ``data``: the place of the first tensor's data."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data: int
    size: int

    def text(self, key: str) -> str | None:
        """A text of the metadata; None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def token(self, name: str) -> int | None:
        """The id of a special token, as in ``token("eos")``; None where the file names none."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a file. Raises ``BakeoutError`` for what is no GGUF file, or was cut short within its header."""
    try:
        with open_regular(path) as file:
            return _Scanner(file, path.stat().st_size).header()
    except OSError as error:
        raise BakeoutError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from None
    except _NotGgufError as error:
        raise BakeoutError(f"{path} is not a whole GGUF file ({error}).", "Copy it again.") from None


class _NotGgufError(Exception):
    """Why a file is no GGUF file."""


class _Scanner:
    """Reads values one behind the other, and never more than the file has."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file = file
        self._size = size

    def header(self) -> GgufHeader:
        if self._bytes(4) != MAGIC:
            raise _NotGgufError("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise _NotGgufError(f"version {version}; read are {', '.join(map(str, _VERSIONS))}")
        tensors, values = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            key = self._text()
            value = self._value(self._scalar("I"), key)
            if value is not None:
                metadata[key] = value
        described: dict[str, GgufTensor] = {}
        for _ in range(tensors):
            name = self._text()
            if name in described:
                raise _NotGgufError(f"it holds {name} twice")
            described[name] = self._tensor()
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise _NotGgufError(f"its alignment is {alignment!r}")
        data = -(-self._file.tell() // alignment) * alignment
        return GgufHeader(metadata, described, data, self._size)

    def _tensor(self) -> GgufTensor:
        dimensions = self._scalar("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _NotGgufError(f"a tensor has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return GgufTensor(shape, self._scalar("I"), self._scalar("Q"))

    def _value(self, kind: int, key: str) -> Any:
        """A value of the metadata, named ``key``; None for an array, which is passed over."""
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise _NotGgufError(f"a value of type {kind}")
        inner, length = self._scalar("I"), self._scalar("Q")
        if inner in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[inner]))
        elif inner == _STRING:
            for _ in range(length):
                self._skip(self._length(key))
        else:
            raise _NotGgufError(f"an array of type {inner}")
        return None

    def _length(self, key: str) -> int:
        """The length of a text in the array ``key``, in bytes."""
        length: int = self._scalar("Q")
        if key == _TOKENS and length > LONGEST_TOKEN:
            raise _NotGgufError(f"a token has {length} bytes, more than {LONGEST_TOKEN}")
        return length

    def _text(self) -> str:
        try:
            return self._bytes(self._scalar("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _NotGgufError("a text is not UTF-8") from None

    def _scalar(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._bytes(struct.calcsize(kind)))[0]

    def _bytes(self, count: int) -> bytes:
        self._require(count)
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        self._require(count)
        self._file.seek(count, 1)

    def _require(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise _NotGgufError("it is cut short")
