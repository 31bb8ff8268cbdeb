"""The bundled skills model: its data generator, its tokenizer and its checkpoint."""

from __future__ import annotations

from pathlib import Path

from bakeout.models.errors import BakeoutError


def checkpoint_directory() -> Path:
    """The directory of the bundled checkpoint. Raises ``BakeoutError`` where the installation lacks it."""
    # Resolved: an editable install links the package's files singly, and not those that came later.
    directory = Path(__file__).resolve().parent / "checkpoint"
    if not (directory / "model.safetensors").is_file():
        raise BakeoutError(
            f"The bundled model is not in {directory}.",
            "Install Bakeout again, or train it: python examples/training/train_skills_model.py --output runs/skills.",
        )
    return directory
