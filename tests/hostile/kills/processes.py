"""Commands in forked processes, which need no start, and what cuts them: a signal from outside, or one of their own."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whatever changes what lies in directories, and what is written or forced to the disk before it does.
CALLS = ("mkdir", "open", "fsync", "link", "rename", "replace", "unlink", "rmdir", "truncate")
_LONGEST = 300


@dataclass(frozen=True)
class Done:
    """How a process ended: its status (of a signal, minus its number), what it told, and how long it took."""

    status: int
    told: str
    seconds: float
    calls: Mapping[str, int]


@dataclass(frozen=True)
class Moment:
    """When a signal comes: after some seconds, or before or after the n-th of the calls of one kind."""

    number: int
    seconds: float | None = None
    call: str = ""
    index: int = 0
    is_before: bool = False


def run_in_fork(
    arguments: list[str], home: Path, moment: Moment | None = None, prepare: Callable[[], None] = lambda: None
) -> Done:
    """Run `bakeout` with ``arguments`` in the directory ``home``, its temporary files in ``tmp`` there."""
    (home / "tmp").mkdir(exist_ok=True)
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _serve(arguments, home, moment, prepare)
    if moment is not None and moment.seconds is not None:
        time.sleep(moment.seconds)
        os.kill(process, moment.number)
    while (waited := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() - begun > _LONGEST:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    status = os.waitstatus_to_exitcode(waited[1])
    told = (home / "tmp" / "told").read_text(errors="replace") if (home / "tmp" / "told").exists() else ""
    counted = home / "tmp" / "calls"
    calls = dict(line.split() for line in counted.read_text().splitlines()) if counted.exists() else {}
    for name in ("told", "calls"):
        (home / "tmp" / name).unlink(missing_ok=True)
    return Done(status, told, time.monotonic() - begun, {name: int(count) for name, count in calls.items()})


def _serve(arguments: list[str], home: Path, moment: Moment | None, prepare: Callable[[], None]) -> None:
    status = 99
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        told = os.open(home / "tmp" / "told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(home)
        tempfile.tempdir = str(home / "tmp")
        calls: Counter[str] = Counter()
        for name in CALLS:
            setattr(os, name, _counted(name, getattr(os, name), calls, moment))
        prepare()
        status = _run(arguments)
        if moment is None:
            counted = "".join(f"{name} {count}\n" for name, count in calls.items())
            (home / "tmp" / "calls").write_text(counted)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(arguments: list[str]) -> int:
    from bakeout.__main__ import main
    from bakeout.models.files.temporary import discard_all

    sys.argv = ["bakeout", *arguments]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:  # noqa: BLE001 - told as Python does
        traceback.print_exception(error)
        return 98
    finally:
        # What Python does at its exit; the other functions registered for it are the parent's.
        discard_all()
    return 0


def _counted(name: str, call: Callable[..., Any], calls: Counter[str], moment: Moment | None) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        is_now = moment is not None and moment.call == name and calls[name] == moment.index
        if is_now and moment is not None and moment.is_before:
            os.kill(os.getpid(), moment.number)
        result = call(*arguments, **options)
        if is_now and moment is not None and not moment.is_before:
            os.kill(os.getpid(), moment.number)
        return result

    return counted
