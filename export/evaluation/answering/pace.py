"""How fast answers come, said now and then while they are generated: tokens per second, and the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

_LOG = logging.getLogger("bakeout")
# Seconds between two messages, and before the first.
_INTERVAL = 30.0


def paced(answers: Iterable[tuple[int, list[int]]], description: str, total: int) -> Iterator[tuple[int, list[int]]]:
    """Pass answers on, as (row, tokens), and log every half minute how fast they come."""
    begin = last = time.monotonic()
    tokens = 0
    for number, (row, answer) in enumerate(answers, start=1):
        tokens += len(answer)
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            speed = tokens / (now - begin)
            left = (total - number) * (now - begin) / number
            _LOG.info(f"{description}: {number} of {total} answers, {speed:.0f} tokens/s, about {_said(left)} left")
        yield row, answer


def _said(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
