"""What Forget Direction can be asked for, and what `bakeout tune` searches."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeInt

from bakeout.models.methods.options import MethodOptions, Names, Tuned
from bakeout.models.methods.search_space import SearchSpace, Span


class ForgetDirectionOptions(MethodOptions):
    """The options of Forget Direction."""

    roles: ClassVar[tuple[str, ...]] = ("forget",)
    probed: ClassVar[tuple[str, ...]] = roles
    kept: ClassVar[str | None] = None

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    layer: NonNegativeInt = Field(default=0, description="The layer whose `down` is changed, counted from 0.")
    strength: Tuned = Field(default=1.0, description="How much is taken out: 1 is all of it, `auto` is searched.")


SEARCH = SearchSpace(
    strength="strength",
    symbol="strength",
    axes={"strength": Span(0.1, 4.0)},
    starts=({"strength": 1.0}, {"strength": 2.0}),
)
