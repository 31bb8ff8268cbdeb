"""What an intervention is, for people: `inspect`, the dry run, the model card and the report all print this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeout.models.plan.attention_modules import WeightRole

# Token ids to the text that they stand for.
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Part:
    """What an intervention does in one layer or to one weight; baking owes a receipt for each.

    ``count`` is the receipt's, and ``text`` the same in words. ``place``: what people call the layer, where it is not
    only a number.
    """

    layer: int
    count: int
    text: str
    role: WeightRole | None = None
    place: str | None = None

    @property
    def where(self) -> str:
        """The layer and, where the part is a weight, its role."""
        return (self.place or f"layer {self.layer}") + (f", {self.role}" if self.role else "")


@dataclass(frozen=True)
class Description:
    """One intervention: what it is called, what it is in one line, and how it works in a few sentences.

    ``parts``: per layer or weight; ``facts``: pairs of a short name and a text, names may repeat; ``details``: JSON
    that only the method that fitted it reports; ``json``: all of it, for `--json`.
    """

    kind: str
    title: str
    summary: str
    explanation: str
    parts: tuple[Part, ...]
    facts: tuple[tuple[str, str], ...]
    details: Mapping[str, Any]
    json: Mapping[str, Any]


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 neuron``, ``2 neurons``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
