"""The recipe's reference: every option with its values, its default and its meaning, as the schema has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bakeout.export.recipes.schema import recipe_schema
from bakeout.models.methods.method import Method
from bakeout.models.methods.registry import methods
from bakeout.models.methods.search_space import Among, Span

_PLURALS = {
    "name": "names",
    "text": "texts",
    "path": "paths",
    "integer": "integers",
    "object": "rows",
    "section": "sections",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
# Bounds of seeds are no help to anybody.
_LARGE = 2**31


@dataclass(frozen=True)
class Option:
    """An option of a section: ``values`` that it may have, ``default`` as YAML; None where it must be given."""

    name: str
    values: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Explanation:
    """A section of a recipe: ``key`` in the file, ``notes`` such as its source, and its options."""

    title: str
    key: str
    about: str
    notes: tuple[str, ...]
    options: tuple[Option, ...]


def explain_recipe() -> Iterator[Explanation]:
    """The recipe, its data, graders, chat template, export and evaluation; ``explain_method`` explains methods."""
    schema = recipe_schema()
    yield _explanation("Recipe", "", schema, schema)
    yield _explanation("Data", "data: NAME:", schema["$defs"]["DataFiles"], schema)
    for name, field in schema["$defs"]["Grade"]["properties"].items():
        (section,) = _sections(field)
        yield _explanation(f"Grader {name}", f"data: NAME: grade: {name}:", schema["$defs"][section], schema)
    yield _explanation("Chat template", "chat_template:", schema["$defs"]["ChatTemplateOptions"], schema)
    yield _explanation("Export", "export:", schema["$defs"]["BakeOptions"], schema)
    yield _explanation("Evaluation", "evaluate:", schema["$defs"]["EvaluateOptions"], schema)
    yield _explanation("Tasks", "evaluate: tasks:", schema["$defs"]["Tasks"], schema)


def explain_method(method: Method) -> Iterator[Explanation]:
    """A method's options, then the sections among them."""
    schema = recipe_schema()
    (section,) = _sections(schema["$defs"]["InterventionEntry"]["properties"][method.name])
    options = schema["$defs"][section]
    notes = (f"Source: {method.paper}.", *_searched(method))
    yield _explanation(method.title, f"{method.name}:", {**options, "description": method.summary}, schema, notes)
    for name, field in options["properties"].items():
        for section in _sections(field):
            yield _explanation(f"{method.title}, {name}", f"{method.name}: {name}:", schema["$defs"][section], schema)


def method_lines() -> dict[str, str]:
    """What every method does, by its key in a recipe."""
    return {method.name: f"{method.title} ({method.paper}). {method.summary}" for method in methods().values()}


def _searched(method: Method) -> Iterator[str]:
    if method.search is None:
        return
    axes = ", ".join(f"{name} ({_axis(axis)})" for name, axis in method.search.axes.items())
    yield f"`bakeout tune` searches, where `{method.search.strength}: auto`: {axes}."


def _axis(axis: Span | Among) -> str:
    return f"{axis.low:g} to {axis.high:g}" if isinstance(axis, Span) else ", ".join(axis.values)


def _explanation(
    title: str, key: str, section: Mapping[str, Any], schema: Mapping[str, Any], notes: tuple[str, ...] = ()
) -> Explanation:
    required = section.get("required", ())
    options = (
        Option(name, _values(field), None if name in required else _default(field), _meaning(field, schema))
        for name, field in section["properties"].items()
    )
    return Explanation(title, key, section["description"], notes, tuple(options))


def _meaning(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The field's own description, or that of the section that it is."""
    described = [field, *(schema["$defs"][section] for section in _sections(field))]
    return next((str(option["description"]) for option in described if "description" in option), "")


def _sections(field: Mapping[str, Any]) -> list[str]:
    """The names of the sections that a field may be."""
    forms = [field, *field.get("anyOf", ())]
    return [form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form]


def _values(field: Mapping[str, Any]) -> str:
    """The values of a field in words."""
    if "anyOf" in field:
        return " or ".join(_values(form) for form in field["anyOf"] if form != {"type": "null"})
    if "$ref" in field:
        return "section"
    if "additionalProperties" in field:
        inner = field["additionalProperties"]
        return f"for each name {'any value' if inner is True else _values(inner)}"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        *others, last = [f"`{value}`" for value in field["enum"]]
        return f"{', '.join(others)} or {last}"
    if field["type"] == "array":
        item = _values(field["items"])
        kind, _, rest = item.partition(" ")
        return f"list of {_PLURALS.get(kind, kind)} {rest}".rstrip()
    kind = {"string": field.get("format", "text"), "boolean": "`true` or `false`"}.get(field["type"], field["type"])
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in _BOUNDS.items() if abs(field.get(bound, _LARGE)) < _LARGE]
    return f"{kind} {' and '.join(bounds)}".rstrip()


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if default is None or default == [] or isinstance(default, dict):
        return ""
    return default if isinstance(default, str) else json.dumps(default)
