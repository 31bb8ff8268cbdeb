"""Output for people, while a command works and at its end: rich on a terminal, plain lines elsewhere.

Progress and messages go to standard error, results to standard output, so that ``--json`` can be piped.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO, TypeVar

from bakeout.models.errors import BakeoutError
from bakeout.models.printable import printable
from bakeout.models.progress import Track

Item = TypeVar("Item")
SCHEMA = 1
# Errors of writing to standard output: full or broken disks, readers and terminals that have gone.
_TAKES_NOTHING = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


@contextmanager
def progress() -> Iterator[Track]:
    """A ``Track`` for the time of a command: bars with the time left on a terminal, a line for each job elsewhere."""
    if not _is_terminal(sys.stderr):
        yield _announce
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
            task = bars.add_task(escape(_line(description)), total=total)
            try:
                for item in iterable:
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

        yield track


def _announce(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    say(description)
    return iterable


def show_messages() -> None:
    """Show what the library logs (``logging``, from INFO on) as lines on standard error."""
    logger = logging.getLogger("bakeout")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())


def show_errors_alone() -> None:
    """Of several processes the first one shows the messages: most are of all of them."""
    logging.getLogger("bakeout").setLevel(logging.ERROR)


class _Lines(logging.Handler):
    """Messages as plain lines, wherever standard error leads at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def set_up_streams() -> None:
    """Let standard output and error take every character, and standard input give text, in whatever encoding."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


@contextmanager
def output_errors() -> Iterator[None]:
    """Raise as ``BakeoutError`` that standard output takes nothing; end without a word where its reader has gone."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Whoever writes files tells their errors otherwise, and those of opening them name the file.
        if error.filename is not None or error.errno not in _TAKES_NOTHING:
            raise
        _lead_nowhere(sys.stdout)
        if error.errno == errno.EPIPE:
            sys.exit(1)
        raise BakeoutError(
            f"Standard output cannot be written: {error.strerror}.", "Look at where it is redirected to."
        ) from error


def _lead_nowhere(stream: TextIO) -> None:
    """What ``stream`` still holds is written nowhere: Python would try once more at its end, and show the error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def say(line: str) -> None:
    """A line for people, on standard error, which stays one line whatever is in it."""
    # Without standard error, or where it takes nothing, there is nowhere to tell that.
    if sys.stderr is not None:
        with suppress(OSError):
            print(_line(line), file=sys.stderr, flush=True)


def show(text: str, *, end: str = "\n") -> None:
    """A result for people, on standard output: a line or, with another ``end``, a part of one."""
    print(printable(text), end=end, flush=True)


def show_lines(lines: Iterable[str]) -> None:
    """Results for people, on standard output, each of which stays one line whatever is in it."""
    for line in lines:
        show(_line(line))


def _line(text: str) -> str:
    """A text on one line."""
    return printable(text).replace("\n", "\\n")


def emit_json(content: Mapping[str, Any]) -> None:
    """The one object that ``--json`` prints."""
    print(_json({"schema": SCHEMA, **content}, sys.stdout, indent=2), flush=True)


def emit_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, figures: bool = True
) -> None:
    """A table on standard output: the first column is text, and so are the others unless they are ``figures``."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = None if title is None else _line(title)
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(_line(column)), justify="right" if figures and index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(" ".join(cell.split("\n")))) for cell in row))
    # Without a terminal there is no width to keep to. Cells are text: prompts may hold what looks like markup.
    width = None if _is_terminal(sys.stdout) else 200
    console = Console(width=width, markup=False, highlight=False)
    console.print(table)


def error_line(cause: str, remedy: str, *, machine: bool) -> None:
    """An error on standard error: one line, or one JSON object."""
    if machine:
        say(_json({"error": cause, "remedy": remedy}, sys.stderr))
    else:
        say(" ".join(f"error: {cause} {remedy}".split()))


def _json(content: Mapping[str, Any], stream: TextIO | None, indent: int | None = None) -> str:
    """JSON in which a terminal obeys nothing: what ``stream`` cannot show is escaped as JSON does."""
    is_unicode = stream is None or (stream.encoding or "").lower().startswith("utf")
    text = json.dumps(content, ensure_ascii=not is_unicode, indent=indent, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
