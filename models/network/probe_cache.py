"""What was probed or trained, kept on disk by content: a fit of the same model on the same rows finds it there."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.models.checkpoint.gguf.gguf_checkpoint import cache_directory
from bakeout.models.checkpoint.this_machine import computed_in
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import disk_errors, replace_file
from bakeout.models.network.processes import all_agree
from bakeout.models.plan import Intervention

Array = NDArray[Any]

# Bytes that all entries of one ending may take together; the ones that were not used for longest go first.
LIMIT = 4 << 30
_SCHEMA = 1
_ENDING = ".probed"
_DIGEST = hashlib.sha256().digest_size
# Bytes that are hashed and written at a time.
_PART = 1 << 20

_logger = logging.getLogger(__name__)


def default_directory() -> Path:
    """Where entries are kept unless another directory is named."""
    return cache_directory() / "probed"


@dataclass(frozen=True)
class ProbeCache:
    """The entries of one model, with its earlier interventions applied, as it computes on this machine.

    An entry is an array in NumPy's format with its SHA-256 behind it, so that what is damaged is computed again.
    ``ending``: of the entries' names; those of another make no room for each other.
    """

    directory: Path
    model: str
    limit: int = LIMIT
    ending: str = _ENDING
    _told: set[str] = field(default_factory=set, compare=False)

    @classmethod
    def of(
        cls, directory: Path | None, model: PreTrainedModel, digest: str, earlier: Sequence[Intervention]
    ) -> ProbeCache | None:
        """The cache in ``directory`` for a model whose weights had ``digest`` before ``earlier`` were applied.

        None without a directory, and behind a stochastic coin, which draws anew in each pass.
        """
        if directory is None or any(intervention.is_stochastic for intervention in earlier):
            return None
        config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        described = {
            "schema": _SCHEMA,
            "weights": digest,
            "config": config,
            "attention": model.config._attn_implementation,
            "earlier": [digest_of(intervention) for intervention in earlier],
            "computed_in": computed_in(model),
            "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "threads": torch.get_num_threads(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "versions": {package: version(package) for package in ("bakeout", "torch", "transformers")},
        }
        return cls(directory, _digest(json.dumps(described, sort_keys=True, default=str).encode()))

    def arrays(
        self, asked: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[int]], compute: Callable[[], Sequence[Array]]
    ) -> list[Array]:
        """What was computed on the token ids ``rows``, one array for each description in ``asked``, memory-mapped.

        ``compute`` computes all of them where one is missing or damaged.
        """
        tokens = np.concatenate([np.asarray([len(row), *row], dtype=np.int64) for row in rows])
        of_rows = f"{self.model} {_digest(tokens.tobytes())}"
        paths = [
            self.directory / f"{_digest(f'{of_rows} {json.dumps(request, sort_keys=True)}'.encode())}{self.ending}"
            for request in asked
        ]
        kept = [_read(path) for path in paths]
        whole = [array for array in kept if array is not None]
        # Processes that fit together probe together.
        if all_agree(len(whole) == len(kept)):
            return whole
        computed = list(compute())
        try:
            with disk_errors(self.directory):
                # What is kept comes from the user's data.
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path, array in zip(paths, computed, strict=True):
                replace_file(path, _entry(array))
            self._make_room({path.name for path in paths})
        except BakeoutError as error:
            if str(error) not in self._told:
                _logger.warning("What was probed or trained is not kept for another fit: %s", error)
            self._told.add(str(error))
        return computed

    def _make_room(self, newest: set[str]) -> None:
        """Remove the entries that were not used for longest, apart from the newest, until the others fit."""
        entries = []
        for path in self.directory.glob(f"*{self.ending}"):
            with suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        size = sum(entry[1] for entry in entries)
        for _, bytes_of_entry, path in sorted(entries):
            if size <= self.limit:
                break
            if path.name not in newest:
                with suppress(OSError):
                    path.unlink()
                    size -= bytes_of_entry


def _read(path: Path) -> Array | None:
    """An entry, memory-mapped; None where there is none, or not a whole one."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - _DIGEST
            digest = hashlib.sha256()
            for start in range(0, size, _PART):
                digest.update(file.read(min(_PART, size - start)))
            if file.read() != digest.digest():
                return None
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError):
        return None
    return array


def _entry(array: Array) -> Iterator[bytes | memoryview]:
    """What lies in an entry's file, some bytes at a time: the keys of many prompts lie on the disk, not in memory."""
    header = io.BytesIO()
    array = np.require(array, requirements="C")
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    content = array.reshape(-1).view(np.uint8).data
    parts: list[bytes | memoryview] = [header.getvalue()]
    parts += [content[start : start + _PART] for start in range(0, len(content), _PART)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        yield part
    yield digest.digest()


def digest_of(intervention: Intervention) -> str:
    """SHA-256 of what an intervention does to a model: its kind, settings and arrays, without its report."""
    settings = json.dumps([intervention.kind, intervention.settings()], sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode())
    for name, array in sorted(intervention.arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
