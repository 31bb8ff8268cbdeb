"""The options of Selective Pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bakeout.models.data.uses import Scope
from bakeout.models.methods.options import MethodOptions, Names, Share
from bakeout.models.methods.search_space import Among, SearchSpace, Settings, Span


class SelectivePruningOptions(MethodOptions):
    """The options of Selective Pruning (arXiv 2403.01267; the baseline of arXiv 2503.21730)."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(default=None, description="Names of the data to keep; by default all others.")
    ratio: Literal["auto"] | Share = Field(
        default=0.01,
        description="The share of all neurons that is cut off; `auto` is for `bakeout tune`, which searches it, with "
        "`tokens` where that is not given.",
    )
    experts: bool = Field(
        default=True,
        description="Whether neurons of a mixture's experts are cut off too, or only of layers that see every token.",
    )
    tokens: Scope = Field(default="answer", description="Which tokens the scores are over: the `answer`'s, or `all`.")


def _start(ratio: float, tokens: str = "answer") -> Settings:
    return {"ratio": ratio, "tokens": tokens}


SEARCH = SearchSpace(
    strength="ratio",
    symbol="p",
    axes={"ratio": Span(0.0005, 0.3), "tokens": Among(("answer", "all"))},
    # What kept 0.9 of everything else on real models of 135 and 494 M parameters, the authors' share for arithmetic,
    # and what worked on small models.
    starts=(_start(0.01), _start(0.015), _start(0.005), _start(0.05), _start(0.1), _start(0.01, "all")),
)
