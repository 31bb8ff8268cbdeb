"""Regions of key space: everything that a check, its file and its canary ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, PlanError, require_finite

# The array of a plan file with this name, which must be of this dtype.
Take = Callable[[str, type], Any]

WHERE = "Key Space Detection"


class Regions(ABC):
    """All regions of a check, of one shape: frozen dataclasses of arrays, a region's values side by side in each.

    ``name``: the shape's name in plan files and recipes; ``noun``: what people call one region. ``schema``: the lowest
    schema of Key Space Detection in plan files that can hold it. ``bounded``: keys that are far away are outside.

    A key lies in a region whose margin is at most the region's alpha.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    schema: ClassVar[int] = 2
    bounded: ClassVar[bool] = True

    # In files

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """The arrays by their names in the plan file."""

    @classmethod
    @abstractmethod
    def from_file(cls, take: Take) -> Self:
        """The regions that ``arrays`` were given by."""

    def joined(self, others: Sequence[Self]) -> Self:
        """These regions, and then all ``others``."""
        parts = [regions.arrays() for regions in (self, *others)]
        return type(self)(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    # In key space

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """How many regions there are, and of how many dimensions D the keys are."""

    @abstractmethod
    def margins(self, keys: Floats) -> Floats:
        """How far keys are from the middle of every region: float [n, D] to float64 [n, regions]."""

    @abstractmethod
    def slope(self, keys: Floats, region: int, alpha: float) -> Floats:
        """Where the margin to a region of size ``alpha`` grows, for a search: float [n, D] to float64 [n, D]."""

    # The scale of margins

    def require_alpha(self, alpha: Floats) -> None:
        """Raise ``PlanError`` unless ``alpha`` [regions] can be their sizes."""
        if bool(np.any(alpha <= 0)):
            raise PlanError(f"{WHERE}: an alpha is not positive.")

    def nearness(self, margins: Floats, alpha: Floats) -> Floats:
        """Margins [..., regions] as multiples of alpha [regions]: 1 on the boundary, less inside."""
        near: Floats = margins / alpha
        return near

    def canary_unit(self, expected: Floats) -> Floats:
        """The unit in which distances from ``expected`` margins [sequences, regions] are measured: themselves."""
        return expected

    # For people

    @abstractmethod
    def facts(self, region: int) -> dict[str, int | float]:
        """What there is to tell of a region, as JSON."""

    @abstractmethod
    def told(self, region: int) -> str:
        """The same in words."""


def require_regions(values: Floats, what: str) -> None:
    """Raise ``PlanError`` unless ``values`` are finite and [regions, D]."""
    if values.ndim != 2 or 0 in values.shape:
        raise PlanError(f"{WHERE}: {what} has shape {values.shape}, not [regions, layers x F].")
    require_finite(values, f"{WHERE}: {what}")
