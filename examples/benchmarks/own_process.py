"""Work in a process of its own: the time it takes, and the peak of what it holds in memory."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def in_a_process_of_its_own(work: Callable[..., object], *arguments: object) -> tuple[float, int]:
    """Run ``work``, a function of a module, in a new process: seconds, and bytes resident at most."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, arguments))


def _measure(work: Callable[..., object], arguments: tuple[object, ...]) -> tuple[float, int]:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began, _peak_resident()


def _peak_resident() -> int:
    """Bytes. Linux's own record is preferred: rusage's begins with what the parent process held."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
