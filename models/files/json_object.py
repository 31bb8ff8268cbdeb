"""A JSON object read from a file that may not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import parse_json, read_regular


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file, empty where there is no such file. Raises ``BakeoutError`` for anything else."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(read_regular(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise BakeoutError(f"{path} cannot be read ({error}).", "Copy the model again.") from None
    if not isinstance(content, dict):
        raise BakeoutError(f"{path} is not a JSON object.", "Copy the model again.")
    return content
