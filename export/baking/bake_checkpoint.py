"""A plan of weight edits baked into a checkpoint that ``transformers`` loads as it loaded the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.baking.genai_config import GENAI_CONFIG
from bakeout.models.checkpoint.checkpoint_files import combined_digest, resolve_checkpoint, weight_file_digests
from bakeout.models.checkpoint.checkpoint_writer import (
    AT_ONCE,
    TensorEdit,
    checkpoint_files,
    find_edits,
    preview_edits,
    write_checkpoint,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.disk_room import require_space, room_on_disk
from bakeout.models.plan import Plan, PlanError
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track


@dataclass(frozen=True, eq=False)
class CheckpointSource:
    """A checkpoint to bake into: what is edited in it, what is copied, and the SHA-256 of its weight files by name."""

    directory: Path
    edits: tuple[TensorEdit, ...]
    weights: Sequence[Path]
    companions: Sequence[Path]
    digests: Mapping[str, str]

    @property
    def room(self) -> int:
        """The bytes that the artifact takes up, but for its few small files."""
        return sum(room_on_disk(path) for path in (*self.weights, *self.companions))

    @property
    def unchanged(self) -> dict[str, str]:
        """The SHA-256 of the weight files that are copied as they are."""
        edited = {edit.tensor.file for edit in self.edits}
        copied = {path.name for path in self.weights} - edited
        return {name: digest for name, digest in self.digests.items() if name in copied}

    @property
    def in_memory(self) -> int:
        """The bytes of the edited tensors that are in memory at a time, at most."""
        return sum(sorted(edit.tensor.size for edit in self.edits)[-AT_ONCE:])

    def preview(self) -> list[Receipt]:
        """The receipts that baking will give. Only the edited tensors are read, and nothing is written."""
        return preview_edits(self.directory, self.edits)


def find_checkpoint(model: str | Path, plan: Plan) -> CheckpointSource:
    """Find what ``plan`` edits in the checkpoint ``model``, a directory or hub id.

    Raises ``BakeoutError`` where the plan holds what no weight can express, where the checkpoint is not the one that it
    was fitted on, and where a tensor that it edits is absent, of another shape, or quantised.
    """
    _require_weight_edits_alone(plan)
    if Path(model).is_file() or (Path(model).is_dir() and any(Path(model).glob("*.onnx"))):
        raise BakeoutError(
            f"{model} is an ONNX graph, and no checkpoint can be made of one.",
            "Name the checkpoint's directory or hub id, or bake --to onnx.",
        )
    checkpoint = resolve_checkpoint(model)
    if (checkpoint / MANIFEST).is_file():
        raise BakeoutError(
            f"{checkpoint} is an artifact: a plan is baked into it already.",
            "Bake into the base model: one plan can hold several interventions.",
        )
    edits = find_edits(checkpoint, plan)
    digests = require_weights(checkpoint, plan)
    companions = [path for path in companion_files(checkpoint) if path.name != GENAI_CONFIG]
    return CheckpointSource(checkpoint, edits, checkpoint_files(checkpoint), companions, digests)


def require_weights(checkpoint: Path, plan: Plan) -> dict[str, str]:
    """Raise ``PlanError`` unless ``checkpoint`` holds the weights that ``plan`` was fitted on, by their digest.

    Gives the SHA-256 of each of its weight files, by name.
    """
    digests = weight_file_digests(checkpoint)
    found = combined_digest(checkpoint, digests)
    if found != plan.model.digest:
        raise PlanError(
            f"The plan was fitted on weights with sha256 {plan.model.digest[:16]}…, and those in {checkpoint} have "
            f"{found[:16]}….",
            "Bake the plan into the checkpoint it was fitted on, or fit one for this checkpoint.",
        )
    return digests


def write_edited_checkpoint(
    source: CheckpointSource, directory: Path, track: Track
) -> tuple[list[Receipt], dict[str, str]]:
    """Write the edited weights, configuration and tokenizer into ``directory``.

    Gives the receipts, and the SHA-256 of the weight files, by name.
    """
    require_space(directory, source.room)
    receipts, digests = write_checkpoint(source.directory, source.edits, directory, copy_by_kernel, track)
    for path in source.companions:
        copy_by_kernel(path, directory / path.name)
    return receipts, source.unchanged | digests


def _require_weight_edits_alone(plan: Plan) -> None:
    for intervention in plan.interventions:
        if not intervention.edits_weights:
            raise BakeoutError(
                f"The plan holds {intervention.title}, which acts on what the model computes: no weight can "
                "express it, so no checkpoint can carry it.",
                "Bake this plan --to onnx, or fit one of weight edits alone.",
            )
