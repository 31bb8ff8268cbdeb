"""Forked workers that run one case after another, and a watchdog that ends those that hang."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MEMORY = 6 << 30
# How much longer than it may compute a case may wait for anything but a processor, such as a disk that others use.
_PATIENCE = 4
# What no loader has a reason to do: events of ``sys.addaudithook``.
_FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"),
)

Run = Callable[[Any], tuple[str, str]]


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``read``, ``refused``, ``uncaught``, ``hung``, ``died`` or ``ran code``."""

    case: Any
    kind: str
    detail: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether it must not be."""
        return self.kind not in ("read", "refused")


def run_cases(
    run: Run, cases: Iterable[Any], workers: int, seconds: Callable[[Any], float], writes_below: Path
) -> Iterator[Outcome]:
    """``run(case)`` gives a kind and a detail; it runs in a process of its own that is forked from this one.

    A case hangs that computes for longer than its ``seconds``, or waits four times as long for anything else than a
    processor: what other programs take of those, and of the disk, is no fault of it. Files may be written below
    ``writes_below`` alone.
    """
    waiting = iter(cases)
    crew = [_Worker(run, writes_below) for _ in range(workers)]
    for worker in crew:
        worker.start(next(waiting, None))
    while busy := [worker for worker in crew if worker.case is not None]:
        ready, _, _ = select.select([worker.results for worker in busy], [], [], 0.2)
        for index, worker in enumerate(crew):
            if worker.case is None:
                continue
            case, outcome = worker.case, None
            if worker.results in ready:
                outcome = worker.outcome()
            elif worker.hangs(seconds(case)):
                outcome = Outcome(case, "hung", f"more than {seconds(case):g} seconds")
            if outcome is not None:
                yield outcome
                if outcome.kind in ("hung", "died"):
                    worker.end()
                    worker = crew[index] = _Worker(run, writes_below)
                worker.start(next(waiting, None))
    for worker in crew:
        worker.end()


class _Worker:
    def __init__(self, run: Run, writes_below: Path) -> None:
        self.case: Any = None
        self._begun = _Clock(0, 0, 0)
        asked, ask = os.pipe()
        self.results, answer = os.pipe()
        self._ask = ask
        sys.stdout.flush()
        sys.stderr.flush()
        self._process = os.fork()
        if self._process == 0:
            os.close(ask)
            os.close(self.results)
            _serve(run, asked, answer, writes_below)
        os.close(asked)
        os.close(answer)

    def start(self, case: Any) -> None:
        self.case, self._begun = case, _clock(self._process)
        if case is not None:
            _send(self._ask, case)

    def hangs(self, seconds: float) -> bool:
        """Whether the case has computed, or done nothing, for longer than it may."""
        now = _clock(self._process)
        computed, queued = now.computed - self._begun.computed, now.queued - self._begun.queued
        return computed > seconds or now.wall - self._begun.wall - computed - queued > _PATIENCE * seconds

    def outcome(self) -> Outcome:
        answer = _receive(self.results)
        if answer is None:
            return Outcome(self.case, "died", "the process ended")
        kind, detail = answer
        return Outcome(self.case, kind, detail)

    def end(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._ask)
        os.close(self.results)


@dataclass(frozen=True)
class _Clock:
    """Seconds: of the wall's clock, of a process's computing, and of its threads' waiting for a processor."""

    wall: float
    computed: float
    queued: float


def _clock(process: int) -> _Clock:
    """The clock of a process. Linux alone counts what processes do; elsewhere all that passes is computing."""
    wall = time.monotonic()
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        threads = list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return _Clock(wall, wall, 0.0)
    queued = 0
    for thread in threads:
        # It may have ended by now.
        with contextlib.suppress(OSError):
            queued += int((thread / "schedstat").read_text().split()[1])
    return _Clock(wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), queued / 1e9)


def _serve(run: Run, asked: int, answer: int, writes_below: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.dont_write_bytecode = True
    ran: list[str] = []

    def watch(event: str, arguments: Any) -> None:
        if event in _FORBIDDEN or (event == "open" and _writes_elsewhere(arguments[0], arguments[2], writes_below)):
            ran.append(f"{event} {arguments!r}"[:200])
            raise PermissionError(event)

    sys.addaudithook(watch)
    while (case := _receive(asked)) is not None:
        kind, detail = run(case)
        if ran:
            kind, detail = "ran code", ran[0]
            ran.clear()
        _send(answer, (kind, detail))
    os._exit(0)


def _writes_elsewhere(path: Any, flags: Any, below: Path) -> bool:
    """Whether a file that is opened is to be written, and lies where nothing has a reason to write."""
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if not writes or isinstance(path, int):
        return False
    return not os.path.abspath(os.fsdecode(path)).startswith((str(below), os.devnull))  # noqa: PTH100


def _send(descriptor: int, content: Any) -> None:
    data = pickle.dumps(content)
    data = len(data).to_bytes(8, "little") + data
    while data:
        data = data[os.write(descriptor, data) :]


def _receive(descriptor: int) -> Any:
    size = _read(descriptor, 8)
    return None if size is None else pickle.loads(_read(descriptor, int.from_bytes(size, "little")) or b"N.")


def _read(descriptor: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            return None
        data += part
    return data
