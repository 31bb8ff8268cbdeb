"""Every grader, by its name in recipes: a line each. A grader is loaded when it is first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from bakeout.export.evaluation.graders.custom import Custom, Judge
from bakeout.export.evaluation.graders.grader import Grader
from bakeout.export.recipes.grades import GRADES, Grade, as_grade
from bakeout.models.errors import BakeoutError

_HERE = "bakeout.export.evaluation.graders"
_DEFINED_IN = {
    "exact": "exact:Exact",
    "contains": "contains:Contains",
    "number": "number:Number",
    "choice": "choice:Choice",
    "rouge": "rouge:Rouge",
    "regex": "regex:Regex",
    "python": "python:Python",
    "likelihood": "response_likelihood:ResponseLikelihood",
}

# What a caller may give for a grader: its name, a mapping of it to its options, or a function.
GradeLike = Grade | str | Mapping[str, Any] | Judge


def make_grader(grade: Grade) -> Grader:
    """The grader that a recipe's `grade` names. Raises ``BakeoutError`` where it cannot work here."""
    module, _, name = _DEFINED_IN[grade.name].partition(":")
    made: Grader = getattr(import_module(f"{_HERE}.{module}"), name)(grade.options)
    made.described = grade.as_json()
    return made


def grader_of(given: GradeLike, name: str) -> Grader:
    """The grader that was given for the data ``name``. Raises ``BakeoutError`` for what names none."""
    if isinstance(given, Grade):
        return make_grader(given)
    if callable(given):
        return Custom(given)
    try:
        grade = as_grade(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BakeoutError(
            f"The grade of {name} is no grader: {where}{': ' if where else ''}{first['msg']}.",
            f"Choose among {', '.join(GRADES)}, with the options that `bakeout recipe --explain` lists.",
        ) from None
    return make_grader(grade)


def graders_of(given: GradeLike | Mapping[str, GradeLike] | None, names: Sequence[str]) -> dict[str, Grader]:
    """The graders of the data ``names``: one for all, or by name. Raises as ``grader_of``."""
    if given is None:
        return {}
    if isinstance(given, Mapping) and not (set(given) <= set(GRADES) and not set(given) & set(names)):
        return {name: grader_of(grade, name) for name, grade in given.items()}
    return {name: grader_of(given, name) for name in names}
