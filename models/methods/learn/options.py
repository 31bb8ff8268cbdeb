"""The options of LEARN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from bakeout.models.methods.options import MethodOptions, Names, Seed, Share


class LearnOptions(MethodOptions):
    """The options of LEARN (arXiv 2408.04140)."""

    roles: ClassVar[tuple[str, ...]] = ("learn", "similar")
    probed: ClassVar[tuple[str, ...]] = roles
    kept: ClassVar[str | None] = "similar"

    learn: Names = Field(description="Names of the data to learn.", min_length=1)
    similar: Names | None = Field(default=None, description="Names of data of similar tasks, which must stay.")
    energy: Share = Field(
        default=0.9, description="The share of the similar tasks' activations that the change leaves alone."
    )
    scale: PositiveFloat = Field(default=1.0, description="The multiple of the identified matrices that is added.")
    experts: bool = Field(
        default=True,
        description="Whether a mixture's experts are changed too, or only the layers that see every token.",
    )
    rank: PositiveInt = Field(default=4, description="The rank of the change of every weight.")
    steps: PositiveInt = Field(default=150, description="Training steps for every layer.")
    batch_size: PositiveInt = Field(default=32, description="Texts a step.")
    learning_rate: PositiveFloat = Field(default=5e-3, description="AdamW's, at a layer's first step; it falls to 0.")
    seed: Seed = Field(default=0, description="Seed of the training.")

    def names(self, data: Sequence[str]) -> dict[str, list[str]]:
        """The data that each role stands for: no other data are similar because ``similar`` is left out."""
        return {role: names for role, names in super().names([]).items() if names}
