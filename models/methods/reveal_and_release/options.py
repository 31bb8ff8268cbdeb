"""What Reveal-and-Release can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from bakeout.models.methods.options import MethodOptions, Names, Seed


class RevealAndReleaseOptions(MethodOptions):
    """The options of Reveal-and-Release (arXiv 2509.14624)."""

    roles: ClassVar[tuple[str, ...]] = ("retain",)
    probed: ClassVar[tuple[str, ...]] = roles

    instructions: list[str] = Field(
        description="Instructions that ask the model for a question; the best are found.", min_length=1
    )
    patterns: list[str] | None = Field(
        None,
        description="Regular expressions that describe what is to be forgotten; without any, it is what is unlike the "
        "data to keep.",
    )
    retain: Names | None = Field(None, description="Names of the data to keep; by default all.")
    directory: Path = Field(
        description="Where finished rounds and the revealed data are kept, beside the recipe: a fit that was "
        "interrupted goes on from there."
    )
    rounds: PositiveInt = Field(6, description="At most so many rounds.")
    target: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="Stop when so little of what was revealed is left."
    )
    utility: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95, description="Stop before any retained data keeps less than this share."
    )
    seed: Seed = Field(0, description="Seed of sampling and training.")
