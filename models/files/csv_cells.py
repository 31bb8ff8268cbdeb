"""Cells of CSV that no spreadsheet takes for formulas."""

from __future__ import annotations

from typing import TypeVar

from bakeout.models.printable import printable

Value = TypeVar("Value")

# With these a formula begins (OWASP, "CSV Injection"), and what follows may start programs.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_cell(value: Value) -> Value | str:
    """``value``, with an apostrophe before a text that would be a formula. Numbers are no texts, and stay."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.startswith(_BEGINS_FORMULA) else text
