"""Is the model beside the artifact the one that its plan was fitted on? All ratios of a certificate depend on it."""

from __future__ import annotations

from pathlib import Path

from bakeout.export.baking.bake import bake
from bakeout.export.baking.bake_checkpoint import require_weights
from bakeout.export.evaluation.grading import graph_files_digest
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.files.writing import scratch_directory
from bakeout.models.plan import Plan


def require_base(base: Path | Checkpoint, plan: Plan) -> None:
    """Raise ``BakeoutError`` unless ``base``, a graph's file or a checkpoint, is the model that ``plan`` was fitted on.

    A checkpoint is known by its digest; into a graph the plan is baked, which compares shapes and runs the canary.
    """
    if isinstance(base, Checkpoint):
        require_weights(base, plan)
        return
    with scratch_directory() as scratch:
        bake(base, plan, scratch / "artifact")


def base_digest(base: Path | Checkpoint) -> str:
    """What the base model's answers depend on: its checkpoint's digest, or those of its graph and data files."""
    return base.digest if isinstance(base, Checkpoint) else graph_files_digest(base)
