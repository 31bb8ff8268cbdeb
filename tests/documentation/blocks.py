"""The fenced blocks of code of a Markdown page."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

# An HTML comment right above a block names the file that it is quoted from, or the reason why it cannot run.
_BLOCK = re.compile(
    r"(?:^ *<!-- (?:from (?P<file>.*?)|not run: (?P<reason>.*?)) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>.*)\n(?P<code>(?:.*\n)*?)(?P=indent)```$",
    re.M,
)
_COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.M)
_HEADING = re.compile(r"^#+ (.*)$", re.M)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, and the line of its first line in the page.

    ``file``: the file that it is quoted from; ``reason``: why it cannot run.
    """

    language: str
    code: str
    line: int
    file: str | None
    reason: str | None


@dataclass(frozen=True)
class Command:
    """A command of a console block, without its comment, and the lines of output that are shown below it."""

    words: tuple[str, ...]
    output: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    """Every block of a page, in order."""
    return [
        Block(
            match["language"],
            textwrap.dedent(match["code"]),
            page[: match.start("code")].count("\n") + 1,
            match["file"],
            match["reason"],
        )
        for match in _BLOCK.finditer(page)
    ]


def commands(console: str) -> Iterator[Command]:
    """The commands of a console block."""
    for match in _COMMAND.finditer(console):
        words = shlex.split(match["command"], comments=True)
        yield Command(tuple(words), tuple(match["output"].splitlines()))


def links(page: str) -> list[str]:
    """The targets of a page's links, those in code aside."""
    return _LINK.findall(_without_code(page))


def anchors(page: str) -> set[str]:
    """What the headings of a page are linked by, as GitHub names them."""
    headings = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in _HEADING.findall(_without_code(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _without_code(page: str) -> str:
    return _BLOCK.sub("", page)
