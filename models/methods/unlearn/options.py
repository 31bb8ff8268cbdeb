"""The options of UNLEARN, and what `bakeout tune` searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bakeout.models.methods.options import MethodOptions, Names, Seed, Share, Tuned
from bakeout.models.methods.search_space import SearchSpace, Span


class UnlearnOptions(MethodOptions):
    """The options of UNLEARN (arXiv 2408.04140)."""

    roles: ClassVar[tuple[str, ...]] = ("forget", "similar")
    probed: ClassVar[tuple[str, ...]] = roles
    kept: ClassVar[str | None] = "similar"

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    similar: Names | None = Field(default=None, description="Names of data of similar tasks, which must stay.")
    energy: Share = Field(
        default=0.95, description="The share of the similar tasks' activations that the change leaves alone."
    )
    scale: Tuned = Field(
        default=1.0,
        description="The multiple of the identified matrices that is subtracted; `auto` is for `bakeout tune`.",
    )
    experts: bool = Field(
        default=True,
        description="Whether a mixture's experts are changed too, or only the layers that see every token.",
    )
    rank: PositiveInt = Field(default=4, description="The rank of the change of every weight.")
    steps: PositiveInt = Field(default=20, description="Training steps for every layer, at most.")
    batch_size: PositiveInt = Field(default=32, description="Texts a step.")
    learning_rate: PositiveFloat = Field(default=1e-2, description="AdamW's, at a layer's first step; it falls to 0.")
    until: NonNegativeFloat = Field(
        default=0.02,
        description="A layer is done once a batch's loss is under this: its answers are improbable enough.",
    )
    seed: Seed = Field(default=0, description="Seed of the training.")

    def names(self, data: Sequence[str]) -> dict[str, list[str]]:
        """The data that each role stands for: no other data are similar because ``similar`` is left out."""
        return {role: names for role, names in super().names([]).items() if names}


SEARCH = SearchSpace(
    strength="scale",
    symbol="scale",
    axes={"scale": Span(0.1, 4.0)},
    starts=({"scale": 1.0}, {"scale": 0.5}, {"scale": 2.0}),
)
