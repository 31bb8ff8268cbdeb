"""The options of Neuron Adjust, and what `bakeout tune` searches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bakeout.models.data.uses import Scope
from bakeout.models.methods.options import MethodOptions, Names, Seed, Share
from bakeout.models.methods.search_space import Among, SearchSpace, Settings, Span
from bakeout.models.plan import Coin

# What neurons are ranked by.
Selection = Literal["difference", "standardised"]


class NeuronAdjustOptions(MethodOptions):
    """The options of Neuron Adjust (arXiv 2503.21730, section 3.1)."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(default=None, description="Names of the data to keep; by default all others.")
    ratio: Literal["auto"] | Share = Field(
        default=0.03,
        description="The paper's beta: the share of all neurons that is adjusted; `auto` is for `bakeout tune`, which "
        "searches it, with `selection`, `tokens` and `coin` where they are not given.",
    )
    selection: Selection = Field(
        default="difference",
        description="How neurons are ranked: by the signed `difference` of the means (the paper), or `standardised`, "
        "that difference in pooled standard deviations.",
    )
    tokens: Scope = Field(
        default="answer", description="Which tokens the statistics are over: the `answer`'s (the paper), or `all`."
    )
    coin: Coin = Field(
        default="threshold",
        description="`threshold` shifts whenever the value looks like the forget set's, `expected` by the expected "
        "amount (both deterministic), `stochastic` by chance, as in the paper.",
    )
    experts: bool = Field(
        default=True,
        description="Whether a mixture's experts are adjusted too, each by statistics of the tokens that are sent to "
        "it; those that saw fewer than 32 tokens of one set are left alone. Without, only layers that see every token.",
    )
    seed: Seed = Field(default=0, description="Seed of the stochastic coin.")


def _start(ratio: float, selection: str = "difference", tokens: str = "answer", coin: str = "threshold") -> Settings:
    return {"ratio": ratio, "selection": selection, "tokens": tokens, "coin": coin}


SEARCH = SearchSpace(
    strength="ratio",
    symbol="β",
    axes={
        "ratio": Span(0.003, 0.6),
        "selection": Among(("difference", "standardised")),
        "tokens": Among(("answer", "all")),
        "coin": Among(("threshold", "expected")),
    },
    # The paper's largest beta, then the values that worked on small models.
    starts=(
        _start(0.03),
        _start(0.1),
        _start(0.2),
        _start(0.3),
        _start(0.2, selection="standardised"),
        _start(0.1, tokens="all"),
        _start(0.2, coin="expected"),
    ),
)
