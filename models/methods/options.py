"""What the options of every method share: they are a section of a recipe, and some of them name data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, WithJsonSchema

from bakeout.models.data.forms.kinds import Kind


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_NAME: Any = {"type": "string", "format": "name"}
# Names of data: one, or a list.
Names = Annotated[
    Sequence[str],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]}),
]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# A share of everything, but not nothing.
Share = Annotated[float, Field(gt=0, le=1)]
Layers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
# A number that `bakeout tune` searches.
Tuned = Literal["auto"] | PositiveFloat


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodOptions(Section):
    """The options of a method, some of which name data of the recipe.

    ``roles``: the options that name data; ``probed``: those of them whose probe files the method is fitted on;
    ``kept``: the option whose data must not be forgotten too, and that is all other data where it is not given.
    ``by_question``: whether the method tells rows apart by what they ask alone.
    """

    roles: ClassVar[tuple[str, ...]] = ("forget", "retain")
    probed: ClassVar[tuple[str, ...]] = ("forget", "retain")
    kept: ClassVar[str | None] = "retain"
    by_question: ClassVar[bool] = False

    def names(self, data: Sequence[str]) -> dict[str, list[str]]:
        """The data that each role stands for, ``data`` being all names of the recipe."""
        given: dict[str, list[str]] = {role: list(getattr(self, role)) for role in self.roles if getattr(self, role)}
        if self.kept is not None and getattr(self, self.kept) is None:
            taken = {name for names in given.values() for name in names}
            given[self.kept] = [name for name in data if name not in taken]
        return given

    def calibrated(self, data: Sequence[str]) -> list[str]:
        """The data whose calibration rows must be fresh: a guarantee is computed on them."""
        return []

    def widened(self) -> Sequence[Kind]:
        """The kinds of variants of the data to forget that the method is fitted on too."""
        return ()

    @property
    def redraws_conversations(self) -> bool:
        """Whether the method asks conversations, of all names, in drawn forms."""
        return False

    def paths(self) -> Mapping[str, Path]:
        """The options that are paths: in a recipe they are relative to its directory."""
        return {name: value for name, value in self if isinstance(value, Path)}
