from __future__ import annotations

import shutil
from pathlib import Path

from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import weights_digest


def test_a_checkpoint_is_hashed_once(llama_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama_checkpoint, tmp_path / "copy"))
    checkpoint = Checkpoint(copy)
    assert checkpoint.digest == weights_digest(llama_checkpoint)
    (copy / "model.safetensors").unlink()
    assert checkpoint.digest == weights_digest(llama_checkpoint)
    assert checkpoint.file_digests.keys() == {"model.safetensors"}
