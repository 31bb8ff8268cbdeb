"""The interventions of a recipe: a section per method, whose fields are its documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from bakeout.models.methods.neuron_adjust import Selection
from bakeout.models.plan import Coin, Positions
from bakeout.models.probing import Scope


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NeuronAdjustOptions(Section):
    """Neuron Adjust (arXiv 2503.21730): shifts the pre-activations that look like the forget set's."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(None, description="Names of the data to keep; by default all others.")
    ratio: float = Field(0.03, gt=0, le=1, description="The paper's beta: the share of all neurons that is adjusted.")
    selection: Selection = Field(
        "difference",
        description="How neurons are ranked: by the signed `difference` of the means (the paper), or `standardised`, "
        "that difference in pooled standard deviations.",
    )
    tokens: Scope = Field(
        "answer", description="Which tokens the statistics are over: the `answer`'s (the paper), or `all`."
    )
    coin: Coin = Field(
        "threshold",
        description="`threshold` shifts whenever the value looks like the forget set's, `expected` by the expected "
        "amount (both deterministic), `stochastic` by chance, as in the paper.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the stochastic coin.")


class KeySpaceDetectionOptions(Section):
    """Key Space Detection (arXiv 2503.21730): refuses queries whose key vector lies in a cube."""

    forget: Names = Field(description="Names of the data whose queries are refused.", min_length=1)
    retain: Names | None = Field(
        None, description="Names of the data on which false refusals are counted; by default all others."
    )
    layers: Literal["last"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        "last", description="The layers whose key vectors are checked, jointly: `last`, or a list counted from 0."
    )
    cubes: PositiveInt = Field(1, description="Cubes a skill: one around each of so many clusters of its queries.")
    alpha: Literal["auto"] | PositiveFloat = Field(
        "auto",
        description="The cubes' half-width in standard deviations; `auto` takes the smallest that holds all but a "
        "share `epsilon` of fresh queries (split conformal).",
    )
    epsilon: float = Field(0.005, gt=0, lt=1, description="The share of the skill's queries that may get through.")
    positions: Positions = Field(
        "query",
        description="What is checked: the `query`'s last token, the last token of every `step`, or `every` token (the "
        "only choice whose decision does not depend on how a prompt is cut into chunks).",
    )
    refusal: str = Field("Your query is not valid.", min_length=1, description="What the model says instead.")
    floor: float = Field(
        0.1, ge=0, description="Lowest deviation of a cube, as a share of the whole skill's in that dimension."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the clustering.")


class InterventionEntry(Section):
    """One intervention: a single key that names the method."""

    neuron_adjust: NeuronAdjustOptions | None = None
    key_space_detection: KeySpaceDetectionOptions | None = None

    @property
    def options(self) -> NeuronAdjustOptions | KeySpaceDetectionOptions:
        """The options of the method that the entry names."""
        options = self.neuron_adjust or self.key_space_detection
        assert options is not None, "load_recipe refuses entries without a method"
        return options
