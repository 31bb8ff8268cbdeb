"""What `bakeout tune` searches for a method: its strength, and options that are searched with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``, tried evenly on a logarithmic scale."""

    low: float
    high: float


@dataclass(frozen=True)
class Among:
    """A few values."""

    values: tuple[str, ...]


Axes = Mapping[str, Span | Among]


@dataclass(frozen=True)
class SearchSpace:
    """A method's search: it is on where the option ``strength`` is `auto`.

    The other ``axes`` are searched with it, but for those that the recipe sets. ``starts`` are tried first.
    ``symbol``: what the strength is called in figures.
    """

    strength: str
    symbol: str
    axes: Axes
    starts: Sequence[Settings]

    def free(self, given: set[str]) -> Axes:
        """The axes that are searched where the recipe sets the options ``given``."""
        return {name: axis for name, axis in self.axes.items() if name == self.strength or name not in given}


def tuned(strength: float | Literal["auto"]) -> float:
    """A strength that is no longer `auto`: a fit never searches, and recipes that need a search are refused before."""
    if strength == "auto":
        raise ValueError("an untuned strength was not refused before the fit")
    return strength
