"""What LUNAR can be asked for, and what `bakeout tune` searches."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from bakeout.models.methods.options import Layers, MethodOptions, Names, Seed, Tuned
from bakeout.models.methods.search_space import SearchSpace, Span

# How the edited weight is solved for, and what the answers are redirected to.
Solver = Literal["closed_form", "gradient"]
Aim = Literal["shift", "reference"]


class LunarOptions(MethodOptions):
    """The options of LUNAR (arXiv 2502.07218)."""

    roles: ClassVar[tuple[str, ...]] = ("forget", "reference", "retain", "redirected")
    probed: ClassVar[tuple[str, ...]] = roles

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    reference: Names = Field(description="Names of data that the model answers with ignorance already.", min_length=1)
    retain: Names | None = Field(None, description="Names of the data to keep; by default all others.")
    redirected: Names | None = Field(
        None, description="Names of data that an earlier request has forgotten: they stay redirected."
    )
    layers: Literal["auto"] | Layers = Field(
        "auto", description="The layers whose `down_proj` is changed, counted from 0; `auto` chooses one."
    )
    solver: Solver = Field("closed_form", description="`closed_form` (ridge regression) or `gradient` (the paper's).")
    aim: Aim = Field(
        "reference",
        description="Where forget tokens are sent: to what the reference prompts have there (`reference`), or by a "
        "`shift` along the paper's direction.",
    )
    coefficient: Tuned = Field(1.5, description="How far they are sent; `auto` is for `bakeout tune`.")
    ridge: PositiveFloat = Field(0.01, description="The ridge of the closed form.")
    seed: Seed = Field(0, description="Seed of the gradient solver.")


SEARCH = SearchSpace(
    strength="coefficient",
    symbol="coefficient",
    axes={"coefficient": Span(0.25, 6.0)},
    starts=({"coefficient": 1.0}, {"coefficient": 1.5}, {"coefficient": 2.0}),
)
