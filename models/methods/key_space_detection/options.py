"""The options of Key Space Detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from bakeout.models.data.forms.kinds import MIXTURE, PLAIN, Kind, Plain
from bakeout.models.methods.options import Layers, MethodOptions, Names, Section, Seed
from bakeout.models.plan import Keys, Positions

# The options that are chosen on the selection queries if they are `auto`.
STRUCTURE = ("region", "layers", "keys", "cubes", "floor", "epsilon")

# The paper's own settings, which `paper: true` stands for.
PAPER: dict[str, Any] = {"region": "cube", "layers": "last", "cubes": 1, "positions": "query", "augment": []}

# What is not chosen where a recipe names the layers or alpha.
BY_HAND: dict[str, Any] = {
    "region": "cube",
    "layers": "last",
    "keys": "key_vector",
    "cubes": 1,
    "floor": 0.1,
    "epsilon": 0.005,
}

Region = Literal["cube", "linear", "ellipsoid", "rotated_cube"]


class TimesLargest(Section):
    """The authors' alpha: a multiple of the largest margin among the skill's probe queries."""

    times_largest: PositiveFloat = Field(description="The factor, the authors' m.")


class Mixture(Section):
    """The mixture of `augment: auto`, with kinds left out."""

    without: list[Kind] = Field(description="Kinds of forms in which no query is asked.")


@dataclass(frozen=True)
class Structure:
    """What is chosen."""

    layers: tuple[int, ...]
    cubes: int
    floor: float
    epsilon: float
    region: Region = "cube"
    keys: Keys = "key_vector"

    @property
    def size(self) -> tuple[int, int]:
        """How many tests there are: layers times regions."""
        return len(self.layers), self.cubes


class KeySpaceDetectionOptions(MethodOptions):
    """The options of Key Space Detection (arXiv 2503.21730, section 3.2).

    What is left open of ``STRUCTURE`` is chosen, unless ``layers`` or ``alpha`` is named: then it is ``BY_HAND``.
    """

    probed: ClassVar[tuple[str, ...]] = ("forget",)
    by_question: ClassVar[bool] = True

    forget: Names = Field(description="Names of the data whose queries are refused.", min_length=1)
    retain: Names | None = Field(
        default=None, description="Names of the data on which false refusals are counted; by default all others."
    )
    region: Literal["auto"] | Region = Field(
        default="auto",
        description="The shape of the regions in which a query is refused. `cube`: within alpha deviations of the mean "
        "in every dimension (the paper). `linear`: on the skill's side of a linear discriminant (shrunk, of "
        "standardised keys) against the probe queries of all retained data; it refuses what looks unlike those, "
        "strangers perhaps included. `ellipsoid`: near the mean by the skill's shrunk covariance, with up to 64 "
        "directions of its own. `rotated_cube`: within alpha deviations of the mean along these directions. All but "
        "`cube` are our reading of the paper's open question. `auto` is chosen with the layers; where a cube does "
        "as well as the best, and not by a hair, it is taken. By default `auto`, but `cube` (the paper) where layers "
        "or alpha are named.",
    )
    layers: Literal["auto", "last"] | Layers = Field(
        default="auto",
        description="The layers whose key vectors are checked, jointly: `last` (the paper), a list counted from 0, or "
        "`auto`: the shallowest that separate as well as the best, but of half-spaces, which are tried in all examined "
        "depths jointly too, the farthest from what is retained; chosen on the selection queries. By default `auto`, "
        "but `last` where alpha is named.",
    )
    keys: Literal["auto"] | Keys = Field(
        default="auto",
        description="What a layer's key is: the `key_vector` of an FFL that sees every token (the paper; in a mixture "
        "of experts a shared expert's, or a dense layer's), or of a mixture the `router_input` or the `router_logits` "
        "of its routers, which `layers` then count. `auto` is chosen with the layers. By default `auto`, but "
        "`key_vector` where layers or alpha are named.",
    )
    cubes: Literal["auto"] | PositiveInt = Field(
        default="auto",
        description="Cubes, or other regions, of each skill: one for each cluster of its queries (the paper: 1). "
        "`auto` is chosen with the layers. By default `auto`, but 1 where layers or alpha are named.",
    )
    alpha: Literal["auto"] | float | TimesLargest = Field(
        default="auto",
        description="The regions' size, of a cube its half-width in standard deviations, positive but for `region: "
        "linear`; `auto` is the smallest that contains all but a share `epsilon` of fresh queries (split conformal), "
        "and of a half-space more, where what is retained leaves room; `{times_largest: 2}` "
        "twice the largest margin among the probe queries (the authors).",
    )
    epsilon: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        default="auto",
        description="The share of the skill's queries that may get through. `auto` is chosen with the layers, among "
        "shares for which there are enough calibration queries: two more than the guarantee takes, if there are, so "
        "that one far query does not decide. By default `auto`, but 0.005 where layers or alpha are "
        "named.",
    )
    positions: Positions = Field(
        default="query",
        description="What is checked: the `query`'s last token (the paper), the `mean` key over a query's tokens (it "
        "tells apart queries that differ in what they name more than in their kind; a prompt has to be read in one "
        "run, for each run of a prompt in chunks is judged by its own tokens alone), the last token of every `step`, "
        "or `every` token (the only choice whose decision does not depend on how a prompt is cut into chunks; its "
        "alpha is calibrated on the least margin over a query's tokens).",
    )
    query_start: str = Field(
        default="auto",
        min_length=1,
        description="For `positions: mean`: the text in front of what is asked, from the last of which on tokens "
        "count. `auto`: what the chat template writes in front of a user's text. Where there is none, all tokens count "
        "but the first of a text.",
    )
    query_end: str = Field(
        default="auto",
        min_length=1,
        description="The text that every query ends with: behind earlier text, several tokens at once are a `query` if "
        "they end with it, and else drafts of an answer (speculative decoding), which are not tested: nor is a later "
        "turn that a program renders with another ending. `auto`: what the chat template opens an answer with. Where "
        "there is none, they are always a query.",
    )
    refusal: str = Field(
        default="Your query is not valid.", min_length=1, description="The answer that the model gives instead."
    )
    floor: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto",
        description="Lowest deviation of a cube, as a share of the whole skill's in that dimension; other regions have "
        "none. `auto` is chosen with the layers. By default `auto`, but 0.1 where layers or alpha are named.",
    )
    augment: Literal["auto"] | Mixture | list[Kind] = Field(
        default="auto",
        description="The forms in which queries are asked for the fit. `auto`: conversations (rows of `messages`) "
        "each in one drawn form, but a skill's probe queries in several if they are under 1,200: plain, in a second or "
        "third turn, behind a refusal, under other system prompts, in other words, beside pasted material, in frames; "
        "all other rows as they are. `{without: [translation]}`: the same but for these kinds. A list: the "
        "skill's queries as they are and, beside them, a variant of each kind (`suffix`, `prefix`, `whitespace`, "
        "`case`, `punctuation`, `few_shot`, `paraphrase` and `language` if rows have any, and for conversations those "
        "of `auto`). `[]`: all rows as they are (the paper).",
    )
    everyday: bool = Field(
        default=True,
        description="Whether everyday questions of ours, in the same forms, are kept beside the retained data wherever "
        "conversations are asked in forms: they stand for what no recipe names. `false` if the skill is of that kind.",
    )
    paper: bool = Field(
        default=False,
        description="The paper's own settings: one cube, in the last layer, for the last token of queries as they are. "
        "Other values for these options are errors.",
    )
    seed: Seed = Field(default=0, description="Seed of the clustering and of the forms.")

    @property
    def variants(self) -> list[Kind]:
        """The kinds of variants beside the queries themselves."""
        return self.augment if isinstance(self.augment, list) else []

    @property
    def mixture(self) -> dict[Kind | Plain, int]:
        """The relative shares of the forms that conversations are asked in; empty where they stay as they are."""
        if isinstance(self.augment, list):
            return {}
        left_out = self.augment.without if isinstance(self.augment, Mixture) else ()
        return {kind: share for kind, share in MIXTURE.items() if kind == PLAIN or kind not in left_out}

    @model_validator(mode="before")
    @classmethod
    def _with_what_goes_together(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("paper") is True:
            for name, value in PAPER.items():
                if given.get(name, value) != value:
                    raise ValueError(f"`paper: true` stands for `{name}: {value}`, and `{name}` is {given[name]!r}")
            given = PAPER | given
        is_named = any(given.get(name, "auto") != "auto" for name in ("layers", "alpha"))
        return BY_HAND | given if is_named else given

    @field_validator("alpha")
    @classmethod
    def _alpha_is_a_size(cls, alpha: Any, info: ValidationInfo) -> Any:
        if isinstance(alpha, float) and alpha <= 0 and info.data.get("region") != "linear":
            raise ValueError(f"alpha is {alpha:g}: only that of `region: linear` can be 0 or less")
        return alpha

    def calibrated(self, data: Sequence[str]) -> list[str]:
        """The data to forget, where alpha is computed on their calibration queries."""
        return self.names(data)["forget"] if self.alpha == "auto" else []

    def widened(self) -> Sequence[Kind]:
        """The kinds that `augment` names."""
        return self.variants

    @property
    def redraws_conversations(self) -> bool:
        """Whether there is a mixture to draw from."""
        return bool(self.mixture)

    @property
    def is_chosen(self) -> bool:
        """Whether any part of the structure remains to be chosen on the selection queries."""
        return "auto" in (self.region, self.layers, self.cubes, self.floor, self.epsilon)

    @property
    def structure(self) -> Structure:
        """The structure, if no part of it remains to be chosen."""
        if isinstance(self.layers, str) or self.region == "auto":
            raise ValueError("the structure has yet to be chosen")
        if self.cubes == "auto" or self.floor == "auto" or self.epsilon == "auto":
            raise ValueError("the structure has yet to be chosen")
        keys: Keys = "key_vector" if self.keys == "auto" else self.keys
        layers = tuple(sorted(set(self.layers)))
        return Structure(layers, self.cubes, self.floor, self.epsilon, self.region, keys)

    def with_structure(self, structure: Structure) -> Self:
        """The same options with every part of the structure set."""
        return self.model_copy(update={**asdict(structure), "layers": list(structure.layers)})
