"""``figures.json``: the figures of plots, as measured by commands and benchmarks and kept beside an artifact.

    {"schema": 1, "figures": [{"kind": "frontier", "source": "bakeout tune recipe.yaml", …}, …]}

``source`` names in one line what measured the numbers; every share is between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from bakeout.export.evaluation.rows import Count
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import read_regular

SCHEMA = 1
Share = Annotated[float, Field(ge=0, le=1)]
Content = TypeVar("Content", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Inside(_Strict):
    """The share of each skill's queries inside ``skill``'s cubes in ``layers``, against alpha (Figure 5)."""

    kind: Literal["inside"] = "inside"
    source: str
    skill: str
    layers: list[Count]
    chosen: float | None = Field(None, description="The alpha that was baked.")
    alpha: list[float] = Field(min_length=2)
    shares: dict[str, list[Share]] = Field(min_length=1)

    @model_validator(mode="after")
    def _aligned(self) -> Inside:
        _require_lengths(self.shares, len(self.alpha), "alpha")
        return self


class Panel(_Strict):
    """One plot against depth: a line for each name."""

    label: str
    series: dict[str, list[float]] = Field(min_length=1)


class Depth(_Strict):
    """What separates ``skill`` from the others, layer by layer: volume, separation and the like (Figure 6)."""

    kind: Literal["depth"] = "depth"
    source: str
    skill: str
    layers: list[Count] = Field(min_length=1)
    panels: list[Panel] = Field(min_length=1)

    @model_validator(mode="after")
    def _aligned(self) -> Depth:
        for panel in self.panels:
            _require_lengths(panel.series, len(self.layers), "layers")
        return self


class Setting(_Strict):
    """What one setting leaves of the forgotten skill and of each other: accuracies as shares of the base's."""

    setting: float
    forgotten: float = Field(ge=0)
    others: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)


class Frontier(_Strict):
    """Forgetting against retaining over a method's strength (Figure 7). ``name``: of the setting, as ``β``."""

    kind: Literal["frontier"] = "frontier"
    source: str
    method: str
    skill: str
    name: str
    chosen: float | None = None
    points: list[Setting] = Field(min_length=1)

    @model_validator(mode="after")
    def _aligned(self) -> Frontier:
        if any(point.others.keys() != self.points[0].others.keys() for point in self.points):
            raise ValueError("the points have different names")
        return self


class Languages(_Strict):
    """Accuracy as a share of the base's, for each pair of forgotten and tested language (Figure 8)."""

    kind: Literal["languages"] = "languages"
    source: str
    method: str
    forgotten: list[str] = Field(min_length=1)
    tested: list[str] = Field(min_length=1)
    shares: list[list[Annotated[float, Field(ge=0)]]]

    @model_validator(mode="after")
    def _aligned(self) -> Languages:
        if len(self.shares) != len(self.forgotten) or any(len(row) != len(self.tested) for row in self.shares):
            raise ValueError("shares has not one row a forgotten language and one column a tested one")
        return self


class Compared(_Strict):
    """One method; latencies are relative to the base model's, 1 being as fast."""

    method: str
    forgotten: float = Field(ge=0)
    least_other: float = Field(ge=0)
    latency: float | None = Field(None, gt=0)
    latency_refused: float | None = Field(None, gt=0)


class Matched(_Strict):
    """Methods side by side where they forget ``skill`` about as much."""

    kind: Literal["matched"] = "matched"
    source: str
    skill: str
    methods: list[Compared] = Field(min_length=1)


class Attack(_Strict):
    """How many of the prompts that an attack changed got an answer."""

    attack: str
    target: str = Field(description="What was attacked: the method and, of cubes, its `positions`.")
    prompts: Count = Field(gt=0)
    through: Count

    @model_validator(mode="after")
    def _possible(self) -> Attack:
        if self.through > self.prompts:
            raise ValueError(f"{self.through} of {self.prompts} prompts got through")
        return self


class Attacks(_Strict):
    """The share that gets through, per attack."""

    kind: Literal["attacks"] = "attacks"
    source: str
    rows: list[Attack] = Field(min_length=1)


Figure = Inside | Depth | Frontier | Languages | Matched | Attacks


class _File(_Strict):
    schema_number: Literal[1] = Field(alias="schema")
    figures: list[Annotated[Figure, Field(discriminator="kind")]]


def read_figures(path: Path) -> list[Figure]:
    """The figures of one file. Raises ``BakeoutError`` naming what is wrong, and where."""
    return list(read_json_as(_File, path, "Measure again, or name another file.").figures)


def read_json_as(kind: type[Content], path: Path, remedy: str) -> Content:
    """A JSON file of a known form. Raises ``BakeoutError`` with the first thing that is wrong, and ``remedy``."""
    try:
        return kind.model_validate_json(read_regular(path))
    except OSError as error:
        raise BakeoutError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BakeoutError(f"{path}: {where or 'the file'}: {first['msg']}.", remedy) from None


def figure(content: Mapping[str, Any], source: str) -> Figure:
    """A figure from its JSON, and what measured it."""
    drawn: Figure = TypeAdapter(Figure).validate_python({**content, "source": source})
    return drawn


def figures_json(figures: list[Figure]) -> dict[str, Any]:
    """The content of a file that ``read_figures`` reads."""
    return {"schema": SCHEMA, "figures": [figure.model_dump(mode="json") for figure in figures]}


def _require_lengths(series: dict[str, list[float]], length: int, what: str) -> None:
    for name, values in series.items():
        if len(values) != length:
            raise ValueError(f"{name} has {len(values)} values for {length} {what}")
