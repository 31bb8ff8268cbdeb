"""The interventions of a recipe: each entry is a single key, the name of a method, with that method's options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model, model_validator

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.method import Method
from bakeout.models.methods.options import MethodOptions, Section
from bakeout.models.methods.registry import methods


class _Entry(Section):
    """One intervention: a single key that names the method. In Python, a method's options alone do as well."""

    @model_validator(mode="before")
    @classmethod
    def _keyed(cls, value: Any) -> Any:
        if not isinstance(value, MethodOptions):
            return value
        names = [method.name for method in methods().values() if method.options is type(value)]
        return dict.fromkeys(names, value) or value

    @property
    def method(self) -> Method:
        """The method that the entry names."""
        (name,) = self.model_fields_set  # load_recipe refuses entries with none or several
        return methods()[name]

    @property
    def options(self) -> MethodOptions:
        """The options of that method."""
        options: MethodOptions = getattr(self, self.method.name)
        return options


def _entry_type() -> type[_Entry]:
    """An entry may have the key of any method of the registry."""
    fields: dict[str, Any] = {
        method.name: (
            method.options | None,
            Field(None, description=f"{method.title} ({method.paper}). {method.summary}"),
        )
        for method in methods().values()
    }
    one_key: Any = {"json_schema_extra": {"minProperties": 1, "maxProperties": 1}}
    return create_model("InterventionEntry", __base__=_Entry, __doc__=_Entry.__doc__, __cls_kwargs__=one_key, **fields)


if TYPE_CHECKING:
    InterventionEntry = _Entry
else:
    InterventionEntry = _entry_type()


def require_tuned(interventions: Sequence[InterventionEntry]) -> None:
    """Raise ``BakeoutError`` for interventions whose strength has yet to be searched: a build never searches."""
    for entry in interventions:
        if (search := entry.method.needed_search(entry.options)) is not None:
            raise BakeoutError(
                f"`{search.strength}: auto` of `{entry.method.name}` takes a search, and a build never searches.",
                "Write a recipe with every choice filled in: bakeout tune RECIPE -o TUNED.yaml",
            )
