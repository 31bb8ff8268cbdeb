"""A plan of weight edits baked into a checkpoint that ``transformers`` loads as it loaded the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bakeout.export.artifacts.model_source import model_source, require_unbaked
from bakeout.export.artifacts.onnx_directory import companion_files, copy_companions
from bakeout.export.baking.tokenizer_config import choose_template, limit_tokenizer
from bakeout.export.running.genai_config import GENAI_CONFIG
from bakeout.models.checkpoint.checkpoint import Checkpoint
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
class CheckpointBase:
    """A checkpoint to bake into: what is edited in it, what is copied, and the SHA-256 of its weight files by name."""

    directory: Path
    edits: tuple[TensorEdit, ...]
    weights: Sequence[Path]
    companions: Sequence[Path]
    digests: Mapping[str, str]

    @property
    def model(self) -> Path:
        """What can be exported and run."""
        return self.directory

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


def checkpoint_base(model: str | Path | Checkpoint, plan: Plan) -> CheckpointBase:
    """Find what ``plan`` edits in the checkpoint ``model``, a path or hub id.

    Raises ``BakeoutError`` where the plan holds what no weight can express, where the checkpoint is not the one that it
    was fitted on, and where a tensor that it edits is absent, of another shape, or quantised.
    """
    _require_weight_edits_alone(plan)
    checkpoint = model_source(model)
    if isinstance(checkpoint, Path):
        raise BakeoutError(
            f"{model} is an ONNX graph, and no checkpoint can be made of one.",
            "Name the checkpoint's directory or hub id, or bake `to: onnx`.",
        )
    require_unbaked(checkpoint.directory)
    edits = find_edits(checkpoint.directory, plan)
    require_weights(checkpoint, plan)
    companions = [path for path in companion_files(checkpoint.directory) if path.name != GENAI_CONFIG]
    weights = checkpoint_files(checkpoint.directory)
    return CheckpointBase(checkpoint.directory, edits, weights, companions, checkpoint.file_digests)


def require_weights(checkpoint: Checkpoint, plan: Plan) -> None:
    """Raise ``PlanError`` unless ``checkpoint`` holds the weights that ``plan`` was fitted on, by their digest."""
    if checkpoint.digest != plan.model.digest:
        raise PlanError(
            f"The plan was fitted on weights with sha256 {plan.model.digest[:16]}…, and those in "
            f"{checkpoint.directory} have {checkpoint.digest[:16]}….",
            "Bake the plan into the checkpoint it was fitted on, or fit one for this checkpoint.",
        )


def write_edited_checkpoint(
    base: CheckpointBase, plan: Plan, directory: Path, track: Track
) -> tuple[list[Receipt], dict[str, str]]:
    """Write the edited weights, configuration and tokenizer into ``directory``.

    Gives the receipts, and the SHA-256 of the weight files, by name.
    """
    require_space(directory, base.room)
    receipts, digests = write_checkpoint(base.directory, base.edits, directory, copy_by_kernel, track)
    copy_companions(base.companions, directory)
    limit_tokenizer(directory)
    choose_template(directory, plan)
    return receipts, base.unchanged | digests


def _require_weight_edits_alone(plan: Plan) -> None:
    for intervention in plan.interventions:
        if not intervention.edits_weights:
            raise BakeoutError(
                f"The plan holds {intervention.title}, which acts on what the model computes: no weight can "
                "express it, so no checkpoint can carry it.",
                "Bake this plan with `to: onnx`, or fit one of weight edits alone.",
            )
