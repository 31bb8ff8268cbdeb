"""Text from files of others in Markdown: shown as it is, never a link, a tag, or the end of a table's row."""

from __future__ import annotations

import re

from bakeout.models.printable import printable

# Backslashes, code, emphasis, links and images, HTML, tables; underscores within a word mark nothing up. Addresses are
# links without any mark, and an ampersand may begin an entity.
_MARKUP = re.compile(r"[\\`*\[\]<>|]|~(?=~)|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|(?<=\w):(?=//)|(?<=www)\.|(?<=\w)@(?=\w)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;", ".": "&#46;", "@": "&#64;"}


def as_text(text: object) -> str:
    """``text`` on one line, its markup escaped."""
    line = printable(" ".join(str(text).split()))
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), line)


def as_code(text: object) -> str:
    """``text`` for between backticks, in a table or outside."""
    return printable(" ".join(str(text).split())).replace("`", "'").replace("|", "\\|")
