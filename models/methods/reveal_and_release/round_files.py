"""Finished rounds of Reveal-and-Release as files: safetensors, JSON and JSONL, from which a fit goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.files.writing import forget_killed, replace_file, write_file
from bakeout.models.methods.lora_modules import Module

_SCHEMA = 3
# Where a configuration comes from: a fit goes on with a checkpoint that was moved.
_ORIGIN = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, eq=False)
class Round:
    """What a round leaves behind: two modules, the state of the bandit after it, and figures (JSON)."""

    forget: Module
    retain: Module
    bandit: Mapping[str, Tensor]
    figures: Mapping[str, Any]


class RoundFiles:
    """The directory of one fit. ``claim`` it first.

    A round is finished once its ``.json``, which is written last, is there; it holds the digest of all three files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def claim(self, fingerprint: str) -> None:
        """Make the directory this fit's own. Raises ``BakeoutError`` where it is another's, or holds other files."""
        marker = self._directory / "fit.json"
        expected = json.dumps({"schema": _SCHEMA, "fit": fingerprint}) + "\n"
        if marker.is_file():
            if marker.read_bytes() != expected.encode():
                raise BakeoutError(
                    f"{self._directory} holds the rounds of another fit: other options, data, model or "
                    "earlier interventions.",
                    "Choose another directory, or remove this one.",
                )
            return
        # A process that was killed while it wrote the marker is no other fit.
        forget_killed(marker)
        if self._directory.exists() and (not self._directory.is_dir() or any(self._directory.iterdir())):
            raise BakeoutError(
                f"{self._directory} exists and is no directory of Reveal-and-Release.", "Choose a new directory."
            )
        write_file(marker, expected)

    def audit(self, number: int) -> Path:
        """Where the revealed data of a round is kept."""
        return self._directory / f"round-{number}.jsonl"

    def write_audit(self, number: int, lines: str) -> None:
        """Keep the revealed data of a round."""
        replace_file(self.audit(number), lines)

    def save(self, number: int, finished: Round) -> None:
        """Keep a finished round, whose revealed data is there."""
        tensors = {f"bandit.{name}": tensor for name, tensor in finished.bandit.items()}
        for kind, module in (("forget", finished.forget), ("retain", finished.retain)):
            for name, (left, right) in module.items():
                tensors |= {f"{kind}.B.{name}": left, f"{kind}.A.{name}": right}
        content = save({name: t.contiguous() for name, t in tensors.items()})
        replace_file(self._path(number, "safetensors"), content)
        revealed = read_regular(self.audit(number))
        written = {"figures": finished.figures, "sha256": _digest(content, revealed, finished.figures)}
        replace_file(self._path(number, "json"), json.dumps(written, indent=1) + "\n")

    def load(self) -> list[Round]:
        """The finished rounds, in order. Raises ``BakeoutError`` for a damaged file."""
        rounds: list[Round] = []
        while self._path(len(rounds) + 1, "json").is_file():
            rounds.append(self._load(len(rounds) + 1))
        return rounds

    def _load(self, number: int) -> Round:
        path = self._path(number, "safetensors")
        try:
            content = read_regular(path)
            written = parse_json(read_regular(self._path(number, "json")))
            figures = written["figures"]
            if written["sha256"] != _digest(content, read_regular(self.audit(number)), figures):
                raise ValueError("it is not as it was written")
            tensors = load(content)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise BakeoutError(
                f"{path}: the round cannot be read ({error}).", "Remove the round's files; it is fitted again."
            ) from None
        modules: dict[str, dict[str, tuple[Tensor, Tensor]]] = {"forget": {}, "retain": {}}
        for key in tensors:
            kind, _, rest = key.partition(".")
            side, _, name = rest.partition(".")
            if kind in modules and side == "B":
                modules[kind][name] = tensors[key], tensors[f"{kind}.A.{name}"]
        bandit = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith("bandit.")}
        return Round(modules["forget"], modules["retain"], bandit, figures)

    def _path(self, number: int, suffix: str) -> Path:
        return self._directory / f"round-{number}.{suffix}"


def _digest(tensors: bytes, revealed: bytes, figures: Mapping[str, Any]) -> str:
    """SHA-256 of a round: a fit never goes on from another than it left."""
    digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode())
    for content in (tensors, revealed):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def fingerprint(model: PreTrainedModel, settings: Mapping[str, Any]) -> str:
    """SHA-256 of the model's configuration, of its weights and of ``settings`` (JSON).

    Two fits with the same one have the same rounds.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in _ORIGIN}
    digest = hashlib.sha256(json.dumps({**settings, "config": config}, sort_keys=True, default=str).encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name}\0{weight.dtype}\0{tuple(weight.shape)}\0".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
