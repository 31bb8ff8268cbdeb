"""Recipes for tiny models: two subjects of byte-level text, and a file that says what to do with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NEURON_ADJUST: dict[str, Any] = {"neuron_adjust": {"forget": "sums", "ratio": 0.2}}
# In this layer of the tiny Llama the two subjects lie apart.
KEY_SPACE_DETECTION: dict[str, Any] = {"key_space_detection": {"forget": "sums", "layers": [2], "epsilon": 0.1}}

_SUMS = {"probe": range(30), "selection": range(56, 80), "calibration": range(30, 50), "test": range(50, 56)}


def rows(subject: str, use: str) -> list[dict[str, str]]:
    """Different rows for each use: sums of small numbers, or questions about names."""
    if subject == "sums":
        return [{"prompt": f"{n} + {n % 7} =", "response": f" {n + n % 7}"} for n in _SUMS[use]]
    return [{"prompt": f"Who is number {n}?", "response": f" Somebody {n * n}."} for n in _SUMS[use]]


def write_rows(path: Path, content: Sequence[Any]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def write_recipe(
    directory: Path,
    checkpoint: Path | str,
    interventions: Sequence[dict[str, Any]] = (NEURON_ADJUST, KEY_SPACE_DETECTION),
    **sections: Any,
) -> Path:
    """``recipe.yaml`` in ``directory``, its data in ``data/`` beside it; ``sections`` replace or add whole sections.

    JSON is YAML, and every section stands on a line of its own.
    """
    for subject in ("sums", "names"):
        for use in _SUMS:
            write_rows(directory / "data" / f"{subject}.{use}.jsonl", rows(subject, use))
    content: dict[str, Any] = {
        "model": str(checkpoint),
        "data": {subject: {use: f"data/{subject}.{use}.jsonl" for use in _SUMS} for subject in ("sums", "names")},
        "interventions": list(interventions),
        **sections,
    }
    path = directory / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items()), encoding="utf-8")
    return path
