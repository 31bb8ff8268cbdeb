"""What lies in a directory."""

from __future__ import annotations

from pathlib import Path


def tree(directory: Path) -> list[str]:
    """The names of all files and directories below ``directory``, sorted."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))
