"""The interventions of a recipe: a section per method, whose fields are its documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from bakeout.models.data.uses import Scope
from bakeout.models.data.variants import Kind
from bakeout.models.methods.choices import Aim, Selection, Solver
from bakeout.models.plan import Coin, Positions


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodOptions(Section):
    """The options of a method, some of which name data of the recipe.

    ``roles``: the options that name data; ``probed``: those of them whose probe files the method is fitted on;
    ``kept``: the option whose data must not be forgotten too, and that is all other data where it is not given.
    """

    roles: ClassVar[tuple[str, ...]] = ("forget", "retain")
    probed: ClassVar[tuple[str, ...]] = ("forget", "retain")
    kept: ClassVar[str | None] = "retain"

    def names(self, data: Sequence[str]) -> dict[str, list[str]]:
        """The data that each role stands for, ``data`` being all names of the recipe."""
        given: dict[str, list[str]] = {role: getattr(self, role) for role in self.roles if getattr(self, role)}
        if self.kept is not None and getattr(self, self.kept) is None:
            taken = {name for names in given.values() for name in names}
            given[self.kept] = [name for name in data if name not in taken]
        return given


# A number that `bakeout tune` searches.
Tuned = Literal["auto"] | PositiveFloat


class NeuronAdjustOptions(MethodOptions):
    """Neuron Adjust (arXiv 2503.21730): shifts the pre-activations that look like the forget set's."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(None, description="Names of the data to keep; by default all others.")
    ratio: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        0.03,
        description="The paper's beta: the share of all neurons that is adjusted; `auto` is for `bakeout tune`, which "
        "searches it, with `selection`, `tokens` and `coin` where they are not given.",
    )
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


class TimesLargestOption(Section):
    """The authors' alpha: so many times the largest margin among the skill's probe queries."""

    times_largest: PositiveFloat


class KeySpaceDetectionOptions(MethodOptions):
    """Key Space Detection (arXiv 2503.21730): refuses queries whose key vector lies in a cube."""

    probed: ClassVar[tuple[str, ...]] = ("forget",)

    forget: Names = Field(description="Names of the data whose queries are refused.", min_length=1)
    retain: Names | None = Field(
        None, description="Names of the data on which false refusals are counted; by default all others."
    )
    layers: Literal["auto", "last"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        "last",
        description="The layers whose key vectors are checked, jointly: `last` (the paper), a list counted from 0, or "
        "`auto`: the shallowest that tell the queries as well as the best, chosen on the selection queries.",
    )
    cubes: Literal["auto"] | PositiveInt = Field(
        1,
        description="Cubes a skill: one around each of so many clusters of its queries (the paper: 1). `auto` is "
        "chosen with the layers.",
    )
    alpha: Literal["auto"] | PositiveFloat | TimesLargestOption = Field(
        "auto",
        description="The cubes' half-width in standard deviations; `auto` takes the smallest that holds all but a "
        "share `epsilon` of fresh queries (split conformal), `{times_largest: 2}` twice the largest margin among the "
        "probe queries (the authors).",
    )
    epsilon: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        0.005,
        description="The share of the skill's queries that may get through. `auto` is chosen with the layers, among "
        "shares that there are calibration queries enough for.",
    )
    positions: Positions = Field(
        "query",
        description="What is checked: the `query`'s last token, the last token of every `step`, or `every` token (the "
        "only choice whose decision does not depend on how a prompt is cut into chunks).",
    )
    refusal: str = Field("Your query is not valid.", min_length=1, description="What the model says instead.")
    floor: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        0.1,
        description="Lowest deviation of a cube, as a share of the whole skill's in that dimension. `auto` is chosen "
        "with the layers.",
    )
    augment: list[Kind] = Field(
        [],
        description="Kinds of variants (`suffix`, `prefix`, `whitespace`, `case`, `punctuation`, `few_shot`, or "
        "`paraphrase` and `language` where rows bring any) of the skill's own queries that are refused as well.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the clustering and of the variants.")

    @property
    def is_chosen(self) -> bool:
        """Whether anything of the structure is left to be chosen on the selection queries."""
        return "auto" in (self.layers, self.cubes, self.floor, self.epsilon)


class SelectivePruningOptions(MethodOptions):
    """Selective Pruning (the baseline of arXiv 2503.21730): cuts off the neurons that speak most on the forget set."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(None, description="Names of the data to keep; by default all others.")
    ratio: float = Field(0.015, gt=0, le=1, description="The share of all neurons that is cut off.")
    tokens: Scope = Field("answer", description="Which tokens the scores are over: the `answer`'s, or `all`.")


class LunarOptions(MethodOptions):
    """LUNAR (arXiv 2502.07218): redirects what is to be forgotten to where the model says that it does not know."""

    roles: ClassVar[tuple[str, ...]] = ("forget", "reference", "retain", "redirected")
    probed: ClassVar[tuple[str, ...]] = roles

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    reference: Names = Field(description="Names of data that the model answers with ignorance already.", min_length=1)
    retain: Names | None = Field(None, description="Names of the data to keep; by default all others.")
    redirected: Names | None = Field(
        None, description="Names of data that an earlier request has forgotten: they stay redirected."
    )
    layers: Literal["auto"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
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
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the gradient solver.")


class UnlearnOptions(MethodOptions):
    """UNLEARN (arXiv 2408.04140): takes a task's low-rank matrices away, apart from the subspaces of similar tasks."""

    roles: ClassVar[tuple[str, ...]] = ("forget", "similar")
    probed: ClassVar[tuple[str, ...]] = roles
    kept: ClassVar[str | None] = None

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    similar: Names | None = Field(None, description="Names of data of similar tasks, which must stay.")
    energy: float = Field(
        0.95, gt=0, le=1, description="The share of the similar tasks' activations that the change leaves alone."
    )
    scale: Tuned = Field(1.0, description="How much of what was found is taken away; `auto` is for `bakeout tune`.")
    rank: PositiveInt = Field(4, description="The rank of the change of every weight.")
    steps: PositiveInt = Field(20, description="Training steps for every layer.")
    learning_rate: PositiveFloat = Field(1e-2, description="AdamW's, at a layer's first step.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the training.")


class LearnOptions(MethodOptions):
    """LEARN (arXiv 2408.04140): adds a task's low-rank matrices, apart from the subspaces of similar tasks."""

    roles: ClassVar[tuple[str, ...]] = ("learn", "similar")
    probed: ClassVar[tuple[str, ...]] = roles
    kept: ClassVar[str | None] = None

    learn: Names = Field(description="Names of the data to learn.", min_length=1)
    similar: Names | None = Field(None, description="Names of data of similar tasks, which must stay.")
    energy: float = Field(
        0.9, gt=0, le=1, description="The share of the similar tasks' activations that the change leaves alone."
    )
    scale: PositiveFloat = Field(1.0, description="How much of what was found is added.")
    rank: PositiveInt = Field(4, description="The rank of the change of every weight.")
    steps: PositiveInt = Field(150, description="Training steps for every layer.")
    learning_rate: PositiveFloat = Field(5e-3, description="AdamW's, at a layer's first step.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the training.")


class RevealAndReleaseOptions(MethodOptions):
    """Reveal-and-Release (arXiv 2509.14624): the model itself reveals what it is to forget; no forget data is read."""

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
    target: float = Field(0.02, ge=0, lt=1, description="Stop when so little of what was revealed is left.")
    utility: float = Field(0.95, ge=0, le=1, description="Stop before any retained data keeps less than this share.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of sampling and training.")


class InterventionEntry(Section):
    """One intervention: a single key that names the method."""

    neuron_adjust: NeuronAdjustOptions | None = None
    key_space_detection: KeySpaceDetectionOptions | None = None
    selective_pruning: SelectivePruningOptions | None = None
    lunar: LunarOptions | None = None
    unlearn: UnlearnOptions | None = None
    learn: LearnOptions | None = None
    reveal_and_release: RevealAndReleaseOptions | None = None

    @property
    def options(self) -> MethodOptions:
        """The options of the method that the entry names."""
        (name,) = self.model_fields_set  # load_recipe refuses entries with none or several
        options: MethodOptions = getattr(self, name)
        return options


# The methods by the keys they have in a recipe.
METHODS: dict[str, type[MethodOptions]] = {
    "neuron_adjust": NeuronAdjustOptions,
    "key_space_detection": KeySpaceDetectionOptions,
    "selective_pruning": SelectivePruningOptions,
    "lunar": LunarOptions,
    "unlearn": UnlearnOptions,
    "learn": LearnOptions,
    "reveal_and_release": RevealAndReleaseOptions,
}


def method_name(entry: InterventionEntry) -> str:
    """The key that an entry names its method by."""
    (name,) = entry.model_fields_set
    return name
