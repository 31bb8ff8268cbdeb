"""Two ways to do the same thing, timed in interleaved pairs: what drifts on the machine drifts for both."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from scipy.stats import binom

Action = Callable[[], object]
Clock = Callable[[], float]
WARM_UP = 3
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Comparison:
    """Median times in milliseconds, and the median of the pairs' ratios with its 95 % interval."""

    baseline: float
    variant: float
    ratio: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """The ratio and its interval, as it stands in a table."""
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


def compare(baseline: Action, variant: Action, *, pairs: int, clock: str = "wall") -> Comparison:
    """Time ``baseline`` and ``variant`` in turn, ``pairs`` times each, the one that goes first changing every time.

    ``clock``: one of ``CLOCKS``; ``processor`` is for a single-threaded run on a machine that is not idle.
    """
    return _compared(_times(baseline, variant, pairs, CLOCKS[clock]))


def compare_loaded(
    baseline: Callable[[], Action], variant: Callable[[], Action], *, loads: int, pairs: int, clock: str = "wall"
) -> Comparison:
    """The same of what is loaded ``loads`` times afresh, the one that is loaded first changing every time.

    Where a session's weights happen to lie in memory makes one of two equal sessions up to a fifth slower.
    """
    times: list[tuple[float, float]] = []
    for load in range(loads):
        if load % 2:
            second = variant()
            first = baseline()
        else:
            first, second = baseline(), variant()
        times += _times(first, second, pairs, CLOCKS[clock])
        del first, second
    return _compared(times)


def _times(baseline: Action, variant: Action, pairs: int, now: Clock) -> list[tuple[float, float]]:
    for _ in range(WARM_UP):
        baseline()
        variant()
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            second = _seconds(variant, now)
            times.append((_seconds(baseline, now), second))
        else:
            times.append((_seconds(baseline, now), _seconds(variant, now)))
    return times


def _compared(times: Sequence[tuple[float, float]]) -> Comparison:
    ratios = sorted(second / first for first, second in times)
    # The interval of the median by order statistics: no assumption on how the times are distributed.
    outside = max(int(binom.ppf(0.025, len(ratios), 0.5)) - 1, 0)
    return Comparison(
        baseline=1000 * statistics.median(first for first, _ in times),
        variant=1000 * statistics.median(second for _, second in times),
        ratio=statistics.median(ratios),
        low=ratios[outside],
        high=ratios[-1 - outside],
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, each row as soon as it is measured."""
    for row in chain((header, ["---"] * len(header)), rows):
        print("| " + " | ".join(row) + " |", flush=True)


def print_machine(*distributions: str) -> None:
    """Print what the figures were measured on: processor, cores, Python, and the versions of ``distributions``."""
    versions = ", ".join(f"{name} {version(name)}" for name in distributions)
    print(f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n", flush=True)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _seconds(action: Action, now: Clock) -> float:
    began = now()
    action()
    return now() - began
