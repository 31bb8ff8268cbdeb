"""Rows that a recipe uses twice: found by what they say, before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bakeout.export.recipes.recipe import Recipe
from bakeout.models.data.row_content import RowContent, row_contents
from bakeout.models.data.row_source import DataError
from bakeout.models.data.rows import Sources
from bakeout.models.data.uses import Use
from bakeout.models.methods.options import MethodOptions

_logger = logging.getLogger(__name__)

# What rows are told apart by.
_Said = Callable[[RowContent], tuple[str, ...]]
_Contents = Mapping[str, Mapping[Use, Sequence[RowContent]]]
# What is done to the rows of a role; the same rows cannot stay as they are.
_CHANGED = {"forget": "forgotten", "learn": "learnt"}
# On what else rows of a use would not be fresh.
_SEEN: Mapping[Use, tuple[Use, ...]] = {
    "selection": ("probe",),
    "calibration": ("probe", "selection"),
    "test": ("probe", "selection", "calibration"),
}


@dataclass(frozen=True)
class SeenRows:
    """``count`` of the ``total`` rows of a name's use that are rows of ``other`` too, on which something is fitted."""

    name: str
    use: Use
    other: Use
    count: int
    total: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.count} of {self.total} {self.use} rows are {self.other} rows too, so that figures on "
            "them are not those of fresh rows"
        )


def require_separate(recipe: Recipe, sources: Sources) -> tuple[SeenRows, ...]:
    """Raise ``DataError`` for rows, by content, that are to be changed and retained, or calibration and seen rows.

    Calibration rows of data whose coverage is guaranteed may be neither among the rows that the cubes are fitted on,
    nor among those that their structure is chosen on, under any name. What only makes figures less than they seem is
    logged and returned: rows for testing, or for choosing, that are fitted on too.
    """
    contents = {
        name: {use: list(row_contents(source)) for use, source in uses.items()} for name, uses in sources.items()
    }
    for entry in recipe.interventions:
        options, names = entry.options, recipe.fitted_data()
        _require_other_rows_retained(options, names, contents)
        fitted_on = {name: contents[name] for each in options.names(names).values() for name in each}
        for name in options.calibrated(names):
            calibration = contents[name].get("calibration", ())
            _require_fresh_calibration(calibration, fitted_on.values(), widened=bool(options.widened()))
    return tuple(_seen(contents))


def _require_other_rows_retained(options: MethodOptions, names: Sequence[str], contents: _Contents) -> None:
    by_role = options.names(names)
    said: _Said = _question if options.by_question else _whole

    def rows_of(role: str | None) -> list[RowContent]:
        return [row for name in by_role.get(role or "", []) for rows in contents[name].values() for row in rows]

    for role, changed in _CHANGED.items():
        if both := _shared(rows_of(options.kept), rows_of(role), said):
            row, other = both[0]
            raise DataError(
                f"{row.where}: the row is to be retained, and as {other.where}, to be {changed}{_and_more(both)}.",
                "Remove such rows from one of the two.",
            )


def _require_fresh_calibration(
    calibration: Sequence[RowContent], fitted_on: Iterable[Mapping[Use, Sequence[RowContent]]], *, widened: bool
) -> None:
    seen = [row for uses in fitted_on for use in _SEEN["calibration"] for row in uses.get(use, ())]
    said: _Said = (lambda row: (row.question, *row.others)) if widened else _question
    if both := _shared(calibration, seen, said):
        row, other = both[0]
        raise DataError(
            f"{row.where}: the row is there to calibrate `alpha: auto`, and is {other.where} too{_and_more(both)}: the "
            "guarantee is for fresh rows alone.",
            "Calibrate with rows that are for nothing else, or give a number for `alpha`.",
        )


def _seen(contents: _Contents) -> Iterator[SeenRows]:
    """What is seen, and a line in the log for each."""
    for name, uses in contents.items():
        for use, rows in uses.items():
            for other in _SEEN.get(use, ()):
                seen = [row for every in contents.values() for row in every.get(other, ())]
                if both := _shared(rows, seen, _question):
                    row, first = both[0]
                    found = SeenRows(name, use, other, len(both), len(rows))
                    _logger.warning(f"{found}; {row.where} is {first.where}")
                    yield found


def _shared(
    rows: Iterable[RowContent], others: Iterable[RowContent], said: _Said
) -> list[tuple[RowContent, RowContent]]:
    """The rows that say what one of the others says, each with the first such."""
    first: dict[str, RowContent] = {}
    for other in others:
        for text in said(other):
            first.setdefault(text, other)
    # Rows that say nothing are told where they are read.
    return [(row, first[text]) for row in rows if row.question for text in said(row)[:1] if text in first]


def _question(row: RowContent) -> tuple[str, ...]:
    return (row.question,)


def _whole(row: RowContent) -> tuple[str, ...]:
    return (f"{row.question}\n\n{row.answer}",)


def _and_more(both: Sequence[object]) -> str:
    return f" (and {len(both) - 1} more such rows)" if len(both) > 1 else ""
