"""Commands in forked processes, which need no start, and what cuts them: a signal from outside, or one of their own."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.__main__ import main
from bakeout.export.cli.signals import end_by_signals
from bakeout.models.files.temporary import discard_all

from tests.directory_tree import tree

# Whatever changes what lies in directories, and what is written or forced to the disk before it does.
CALLS = ("mkdir", "open", "fsync", "link", "rename", "replace", "unlink", "rmdir", "truncate")
_LONGEST = 300


@dataclass(frozen=True)
class Done:
    """How a process ended: its status (of a signal, minus its number), what it told, and how long it took.

    ``calls``: how many of ``CALLS`` it made; ``left``: what lay in its directory in the end.
    """

    status: int
    told: str
    seconds: float
    calls: Mapping[str, int]
    left: Sequence[str]


@dataclass(frozen=True)
class Moment:
    """When a signal comes: after some seconds, or before or after the n-th of the calls of one kind."""

    number: int
    seconds: float | None = None
    call: str = ""
    index: int = 0
    is_before: bool = False


def run_in_fork(
    arguments: Sequence[str],
    home: Path,
    moment: Moment | None = None,
    prepare: Callable[[], None] = lambda: None,
    ranks: int = 1,
) -> Done:
    """Run `bakeout` with ``arguments`` in the directory ``home``, its temporary files in ``tmp`` there.

    ``prepare`` runs in the process, before the command. ``ranks``: as so many processes, which torchrun would start;
    a signal from outside comes to all of them, one of their own to the first.
    """
    (home / "tmp").mkdir(exist_ok=True)
    # Pipes know no limits of file sizes. A command tells less than they hold.
    told, tell = os.pipe()
    answer, ask = os.pipe()
    for descriptor in (tell, ask):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _serve(arguments, home, moment, prepare, tell, ask, ranks)
    os.close(tell)
    os.close(ask)
    os.read(answer, 1)
    if moment is not None and moment.seconds is not None:
        time.sleep(moment.seconds)
        os.killpg(process, moment.number)
    while (waited := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() - begun > _LONGEST:
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    with os.fdopen(told, errors="replace") as lines, os.fdopen(answer, "rb") as results:
        calls, left = pickle.loads(results.read() or pickle.dumps(({}, [])))
        return Done(os.waitstatus_to_exitcode(waited[1]), lines.read(), seconds, calls, left)


def _serve(
    arguments: Sequence[str],
    home: Path,
    moment: Moment | None,
    prepare: Callable[[], None],
    tell: int,
    ask: int,
    ranks: int,
) -> None:
    status = 99
    try:
        os.setpgid(0, 0)
        if ranks > 1 and _launch(ranks) > 0:
            moment, ask = None, os.open(os.devnull, os.O_WRONLY)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for standard in (1, 2):
            os.dup2(tell, standard)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(home)
        tempfile.tempdir = str(home / "tmp")
        prepare()
        end_by_signals()
        os.write(ask, b".")
        calls: Counter[str] = Counter()
        for name in CALLS:
            setattr(os, name, _counted(name, getattr(os, name), calls, moment))
        status = _run(arguments)
        os.write(ask, pickle.dumps((dict(calls), tree(home))))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _launch(ranks: int) -> int:
    """Fork as torchrun starts processes: the rank, in each. This one waits, and ends the others when one has failed.

    It ends as the lowest rank that failed: the first one, whose own signal ended it, may end after those that miss it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    running: dict[int, int] = {}
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            return rank
        running[process] = rank
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    statuses: dict[int, int] = {}
    while running:
        process, waited = os.wait()
        rank = running.pop(process)
        status = os.waitstatus_to_exitcode(waited)
        if status != 0 and not statuses:
            for other in running:
                os.kill(other, signal.SIGTERM)
        if status != 0:
            statuses[rank] = status
    failed = statuses[min(statuses)] if statuses else 0
    if failed == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(failed)


def _run(arguments: Sequence[str]) -> int:
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
