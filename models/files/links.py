"""Symbolic links in a model's directory: to files in it or, in a hub's cache, to its blobs. Others lead out of it."""

from __future__ import annotations

from pathlib import Path

from bakeout.models.errors import BakeoutError


def leads_to_blob(link: Path, directory: Path) -> bool:
    """Whether ``link`` stands for a file of the hub's cache whose snapshot ``directory`` is, or lies in."""
    real = directory.resolve()
    snapshots = [place.parent for place in (real, *real.parents) if place.parent.name == "snapshots"]
    return any(link.resolve().parent == (place.parent / "blobs").resolve() for place in snapshots)


def require_own_file(path: Path, directory: Path) -> None:
    """Raise ``BakeoutError`` where ``path`` in a model's ``directory`` leads out of it: its content is not the model's.

    Call it for what is copied as it is.
    """
    if path.resolve().is_relative_to(directory.resolve()) or leads_to_blob(path, directory):
        return
    raise BakeoutError(
        f"{path} is a link that leads out of the model's directory, to {path.resolve()}.",
        "Put the file itself in its place, if it belongs to the model.",
    )
