"""The options of Selective Pruning."""

from __future__ import annotations

from pydantic import Field

from bakeout.models.data.uses import Scope
from bakeout.models.methods.options import MethodOptions, Names, Share


class SelectivePruningOptions(MethodOptions):
    """The options of Selective Pruning (arXiv 2403.01267; the baseline of arXiv 2503.21730)."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(default=None, description="Names of the data to keep; by default all others.")
    ratio: Share = Field(default=0.015, description="The share of all neurons that is cut off.")
    experts: bool = Field(
        default=True,
        description="Whether neurons of a mixture's experts are cut off too, or only of layers that see every token.",
    )
    tokens: Scope = Field(default="answer", description="Which tokens the scores are over: the `answer`'s, or `all`.")
