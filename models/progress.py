"""Progress of long work, shown by whoever called for it: nothing below the command line prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Passes an iterable on, and shows how far it is."""

    def __call__(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """``total``: how many items there will be, where that is known."""


def untracked(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Show nothing."""
    return iterable
