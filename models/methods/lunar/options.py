"""The options of LUNAR, and what `bakeout tune` searches."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from bakeout.models.methods.options import Layers, MethodOptions, Names, Section, Seed, Share, Tuned
from bakeout.models.methods.search_space import SearchSpace, Span

# How the edited weight is solved for, and what the answers are redirected to.
Solver = Literal["closed_form", "gradient"]
Aim = Literal["shift", "reference"]
# Which tokens of a forget prompt move.
Tokens = Literal["prompt", "last"]


class GradientOptions(Section):
    """The gradient solver's settings: the authors', but for ``retain_rows``."""

    learning_rate: PositiveFloat = Field(default=1e-2, description="AdamW's, in the first epoch.")
    decay: Share = Field(default=0.9, description="What the rate is multiplied by after each epoch.")
    epochs: PositiveInt = Field(default=20, description="Passes over the rows.")
    rows: PositiveInt = Field(default=64, description="Rows a batch.")
    retain_rows: PositiveFloat = Field(
        default=4.0,
        description="Retain rows for each forget row. The paper takes one; a retained skill that no row stands for "
        "moves.",
    )


class LunarOptions(MethodOptions):
    """The options of LUNAR (arXiv 2502.07218)."""

    roles: ClassVar[tuple[str, ...]] = ("forget", "reference", "retain", "redirected")
    probed: ClassVar[tuple[str, ...]] = roles

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    reference: Names = Field(description="Names of data that the model answers with ignorance already.", min_length=1)
    retain: Names | None = Field(default=None, description="Names of the data to keep; by default all others.")
    redirected: Names | None = Field(
        default=None, description="Names of data that an earlier request has forgotten: they stay redirected."
    )
    layers: Literal["auto"] | Layers = Field(
        default="auto", description="The layers whose `down_proj` is changed, counted from 0; `auto` chooses one."
    )
    experts: bool = Field(
        default=True,
        description="Whether a mixture's experts are changed too, with what else their block holds, or only the layers "
        "that see every token; `layers` count blocks, or these.",
    )
    solver: Solver = Field(
        default="closed_form", description="`closed_form` (ridge regression) or `gradient` (the paper's)."
    )
    aim: Aim = Field(
        default="reference",
        description="Where forget tokens are sent: to what the reference prompts have there (`reference`), or by a "
        "`shift` along the paper's direction.",
    )
    coefficient: Tuned = Field(default=1.5, description="How far they are sent; `auto` is for `bakeout tune`.")
    tokens: Tokens = Field(
        default="prompt",
        description="Which tokens of a forget prompt are sent there: the whole `prompt`'s, or its `last` one.",
    )
    ridge: PositiveFloat = Field(
        default=0.01, description="The closed form's lambda, as a share of the mean of the diagonal of KᵀK."
    )
    gradient: GradientOptions = Field(default=GradientOptions(), description="Settings of the `gradient` solver.")
    truncation: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="The share of a change's norm that may be lost so that its rank is small."
    )
    seed: Seed = Field(default=0, description="Seed of the gradient solver.")


SEARCH = SearchSpace(
    strength="coefficient",
    symbol="coefficient",
    axes={"coefficient": Span(0.25, 6.0)},
    starts=({"coefficient": 1.0}, {"coefficient": 1.5}, {"coefficient": 2.0}),
)
