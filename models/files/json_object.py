"""A JSON object read from a file that may not be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file, empty where there is no such file. Raises ``BakeoutError`` for anything else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BakeoutError(f"{path} cannot be read ({error}).", "Copy the model again.") from None
    if not isinstance(content, dict):
        raise BakeoutError(f"{path} is not a JSON object.", "Copy the model again.")
    return content
