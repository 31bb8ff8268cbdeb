"""A checkpoint whose files are hashed once, however many steps ask what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeout.models.checkpoint.checkpoint_files import combined_digest, load_model, weight_file_digests
from bakeout.models.checkpoint.gguf.gguf_checkpoint import gguf_source
from bakeout.models.checkpoint.placement import REFERENCE, Placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's directory. Its digests are computed when they are first asked for, and kept.

    ``placement``: where and how its model runs. Raises ``BakeoutError`` for digests, as
    ``checkpoint_files.weights_digest`` does.
    """

    directory: Path
    placement: Placement = REFERENCE

    @property
    def source(self) -> dict[str, Any]:
        """The GGUF file that it was made of; empty for others."""
        return gguf_source(self.directory)

    @cached_property
    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 (hex) of each of its ``*.safetensors`` by name."""
        return weight_file_digests(self.directory)

    @cached_property
    def digest(self) -> str:
        """``checkpoint_files.weights_digest``: what a plan knows its model by."""
        return combined_digest(self.directory, self.file_digests)

    def load(self) -> PreTrainedModel:
        """Its model (``checkpoint_files.load_model``)."""
        return load_model(self.directory, self.placement)
