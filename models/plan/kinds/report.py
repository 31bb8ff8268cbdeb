"""What fits report of themselves: typed what every fit of a kind reports, verbatim what a method adds of its own.

Several methods, plug-ins among them, can end in one kind, and a method can report figures that only it has. Therefore
the keys of a report that its kind does not know are kept as they are, while those that it knows must have its types.
Within a value that a kind knows, an unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from bakeout.models.plan.arrays import PlanError


@dataclass(frozen=True)
class Figures:
    """Figures as JSON. A field with a default of None is left out where it is None; all others are always there."""

    def as_json(self) -> dict[str, Any]:
        """JSON, with the fields' names as keys."""
        values = {own.name: (own.default, getattr(self, own.name)) for own in fields(self)}
        return {
            name: _as_json(value)
            for name, (default, value) in values.items()
            if default is MISSING or value is not None
        }

    @classmethod
    def from_json(cls, json: Any, where: str = "report") -> Self:
        """The figures that ``as_json`` gave. Raises ``PlanError``, which names the place, for anything else."""
        if not isinstance(json, Mapping):
            raise PlanError(f"{where} is {json!r}, not a table of figures.")
        hints = get_type_hints(cls)
        known = {own.name: hints[own.name] for own in fields(cls)}
        if unknown := sorted(set(json) - set(known)):
            raise PlanError(f"{where} holds {unknown[0]!r}, which is none of its figures.")
        needed = [own.name for own in fields(cls) if own.default is MISSING and own.default_factory is MISSING]
        if missing := [name for name in needed if name not in json]:
            raise PlanError(f"{where} lacks {missing[0]!r}.")
        return cls(**{name: _read(known[name], value, f"{where}.{name}") for name, value in json.items()})


@dataclass(frozen=True, kw_only=True)
class FitReport(Figures):
    """What a fit reports: the names of the data that it forgets and teaches, and ``details``.

    ``details`` is JSON that only the method itself knows, beside the other fields in the plan file. A plan that was put
    together by hand has an empty report.
    """

    forget: tuple[str, ...] | None = None
    learn: tuple[str, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON: the details beside the other fields."""
        own = super().as_json()
        details = own.pop("details")
        return {**own, **details}

    @classmethod
    def from_json(cls, json: Any, where: str = "report") -> Self:
        """The report that ``as_json`` gave. Keys that the kind does not know are details."""
        if not isinstance(json, Mapping):
            raise PlanError(f"{where} is {json!r}, not a table of figures.")
        names = {own.name for own in fields(cls)} - {"details"}
        own = {name: value for name, value in json.items() if name in names}
        details = {name: value for name, value in json.items() if name not in names}
        return super().from_json({**own, "details": details}, where)

    def facts(self) -> list[tuple[str, str]]:
        """The report in words: pairs of a short name and a text."""
        named = (("forgotten", self.forget), ("taught", self.learn))
        return [(fact, ", ".join(names)) for fact, names in named if names]

    def with_data(self, names: Mapping[str, Sequence[str]]) -> Self:
        """The same report with the ``names`` of the data of every role, where the fit itself reports no such figure."""
        return type(self).from_json({**{role: list(own) for role, own in names.items()}, **self.as_json()})


@dataclass(frozen=True, kw_only=True)
class RetainReport(FitReport):
    """A report that names the data to keep, too."""

    retain: tuple[str, ...] | None = None

    def facts(self) -> list[tuple[str, str]]:
        """The names of the data."""
        return super().facts() + ([("retained", ", ".join(self.retain))] if self.retain else [])


def _as_json(value: Any) -> Any:
    if isinstance(value, Figures):
        return value.as_json()
    if isinstance(value, Mapping):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value


def _read(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``: what a field of figures can hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        present = [argument for argument in arguments if argument is not NoneType]
        return None if value is None else _read(present[0], value, where)
    has_length = arguments[-1:] == (...,) or (isinstance(value, (list, tuple)) and len(value) == len(arguments))
    if origin is tuple and isinstance(value, (list, tuple)) and has_length:
        return tuple(_read(arguments[0], item, where) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {name: _read(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Figures):
        return hint.from_json(value, where)
    if hint is Any or (origin is Literal and value in arguments):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    is_number = hint in (int, float) and not isinstance(value, bool)
    if (is_number or hint is str) and isinstance(value, (int, float) if hint is float else hint):
        return value
    raise PlanError(f"{where} is {value!r}.", "Fit the plan again, or take this figure out.")
