"""Progress of long work, shown by whoever called for it: nothing below the command line prints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")

_logger = logging.getLogger("bakeout")
# Seconds between two messages about the same work.
_INTERVAL = 10.0


class Track(Protocol):
    """Passes an iterable on, and shows how far it is.

    Whatever takes a ``Track`` calls it with every long loop: ``for batch in track(batches, "probing neurons", 12)``.

    >>> def shown(iterable, description, total=None):
    ...     print(description, total)
    ...     return iterable
    >>> plan = bakeout.fit(recipe, track=shown)
    probing neurons: math 5
    probing neurons: german 5
    """

    def __call__(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """``total``: how many items there will be, where that is known."""


def untracked(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Show nothing."""
    return iterable


def logged(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Log to ``bakeout`` at INFO: that the work begins, and every ten seconds how far it is and how long it takes."""
    _logger.info(description if total is None else f"{description}: {total}")
    begin = last = time.monotonic()
    for number, item in enumerate(iterable):
        now = time.monotonic()
        if number and now - last >= _INTERVAL:
            last = now
            left = "" if total is None else f" of {total}, {(total - number) * (now - begin) / number:.0f} s left"
            _logger.info(f"{description}: {number}{left}")
        yield item
