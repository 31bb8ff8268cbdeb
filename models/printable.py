"""Text from files of others, shown so that neither a terminal, nor a browser, nor a reader obeys or misreads it."""

from __future__ import annotations

import unicodedata

# Scripts and emoji are written with joiners; spaces of all widths are spaces.
_HARMLESS = {"\n", "\t", "\u200c", "\u200d"}


def printable(text: str) -> str:
    """``text`` with what a terminal would obey, or could not show, as escapes: control and direction characters, and
    half surrogate pairs. Line ends are kept, where a text has several lines.
    """
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs"
