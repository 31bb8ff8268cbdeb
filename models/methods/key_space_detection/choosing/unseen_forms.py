"""Forms of a question that a region is not fitted to: queries are split by leaving out one group of forms at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bakeout.models.data.forms.kinds import Attachment, Scene, Surface, SystemPrompt, Turns, Wrapping

# Kinds whose wordings are alike: leaving out one of them alone would leave its likes.
GROUPS: tuple[tuple[str, ...], ...] = (
    *map(get_args, (SystemPrompt, Turns, Wrapping, Attachment, Scene, Surface)),
    ("few_shot",),
)
# Of fewer queries on either side nothing is fitted.
_FEWEST = 20

ByName = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Forms:
    """The form of each query by name, in the order of its keys: of those probed, fitted against, and to choose by."""

    probe: ByName
    against: ByName
    selection: ByName

    def splits(self, skill: str) -> Iterator[Split]:
        """For each group of forms what is fitted without it, and what is judged by that."""
        probe = np.array(self.probe[skill])
        against = np.array([form for forms in self.against.values() for form in forms])
        selection = {name: np.array(forms) for name, forms in self.selection.items()}
        for group in GROUPS:
            judged = {name: np.flatnonzero(np.isin(forms, group)) for name, forms in selection.items()}
            split = Split(~np.isin(probe, group), ~np.isin(against, group), judged)
            if min(split.probe.sum(), split.against.sum()) >= _FEWEST and any(map(len, judged.values())):
                yield split


@dataclass(frozen=True, eq=False)
class Split:
    """Which queries of a skill [n] and of those fitted against [m] are in other forms; by name the rows to judge."""

    probe: NDArray[np.bool_]
    against: NDArray[np.bool_]
    judged: Mapping[str, NDArray[np.intp]]
