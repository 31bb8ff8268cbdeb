"""A command that is killed at a moment, and what must hold then: nothing half-written, and the next run is as uncut."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bakeout.export.artifacts.file_names import SIGNATURE

from tests.hostile.kills.inputs import Command, commands
from tests.hostile.kills.processes import Done, Moment

# Where each run keeps what can be made again, so that the next one finds it cut.
_CACHE = "cache"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ABANDONED = re.compile(r"(.*/)?[^/]+\.[0-9a-f]{8}\.bakeout(/.*)?")


@dataclass
class Killed:
    """One try: how it ended (``killed``, or ``too late`` where the command was done), and what should not have been."""

    name: str
    moment: Moment
    end: str
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The uncut run of a command."""

    command: Command
    content: Mapping[str, str]
    done: Done


class Bench:
    """The commands in ``directory``, each run uncut once."""

    def __init__(self, directory: Path, names: list[str] | None = None) -> None:
        self._directory = directory
        (directory / "inputs").mkdir()
        known = commands(directory / "inputs")
        self.references = {name: self._uncut(known[name]) for name in names or known}

    def kill(self, name: str, random: Random) -> Killed:
        """Kill the command once, at a drawn moment."""
        reference = self.references[name]
        moment = _draw(reference.done, random)
        with self._home(reference.command) as home:
            return _killed(name, reference, moment, Path(home))

    def _uncut(self, command: Command) -> Reference:
        with self._home(command) as home:
            done = _run(command, Path(home))
            assert done.status == 0, done.told
            return Reference(command, contents(Path(home)), done)

    def _home(self, command: Command) -> tempfile.TemporaryDirectory[str]:
        home = tempfile.TemporaryDirectory(prefix="home-", dir=self._directory)
        command.prepare(Path(home.name))
        return home


def contents(home: Path) -> dict[str, str]:
    """SHA-256 of each file below ``home``, and of directories nothing, without temporary files of the process."""
    return {
        path.relative_to(home).as_posix(): _digest(path) if path.is_file() else ""
        for path in sorted(home.rglob("*"))
        if path != home / "tmp"
    }


def _digest(path: Path) -> str:
    content = path.read_bytes()
    # A signature has random bytes: it is known by its form, which has none of them where it was cut.
    if path.name == SIGNATURE and content.endswith(b"}"):
        return f"{len(json.loads(content)['dsseEnvelope']['signatures'])} signatures"
    return hashlib.sha256(content).hexdigest()


def kills(bench: Bench, count: int, seed: int) -> Iterator[Killed]:
    """Kill the commands in turn until ``count`` were killed before they were done."""
    random = Random(seed)
    done, number, names = 0, 0, list(bench.references)
    while done < count:
        killed = bench.kill(names[number % len(names)], random)
        number += 1
        done += killed.end == "killed"
        yield killed


def _run(command: Command, home: Path, moment: Moment | None = None) -> Done:
    return command.run(home, moment, lambda: os.environ.update(BAKEOUT_CACHE=str(home / _CACHE)))


def _draw(done: Done, random: Random) -> Moment:
    number = random.choice(SIGNALS)
    if random.random() < 0.5:
        return Moment(number, seconds=random.uniform(0, done.seconds))
    call = random.choice(sorted(done.calls))
    return Moment(number, call=call, index=random.randint(1, done.calls[call]), is_before=random.random() < 0.5)


def _killed(name: str, reference: Reference, moment: Moment, home: Path) -> Killed:
    command = reference.command
    before = contents(home)
    done = _run(command, home, moment)
    killed = Killed(name, moment, "too late" if done.status == 0 else "killed")
    expected = (0, -moment.number) if moment.number == signal.SIGKILL else (0, 128 + moment.number)
    if done.status not in expected:
        killed.findings.append(f"status {done.status}: {done.told[-500:]}")
    if "Traceback" in done.told or "Exception ignored" in done.told:
        killed.findings.append(f"a traceback: {done.told[-1500:]}")
    after = contents(home)
    killed.findings += [f"gone: {path}" for path in before if path not in after and path in reference.content]
    left = {path: digest for path, digest in after.items() if before.get(path) != digest}
    resumed = (*command.resumed, _CACHE)
    for path, digest in left.items():
        if moment.number == signal.SIGKILL and (_ABANDONED.fullmatch(path) or path == "new"):
            continue
        if path in {str(parent) for kept in resumed for parent in Path(kept).parents}:
            continue
        is_resumed = any(path == kept or path.startswith(f"{kept}/") for kept in resumed)
        if not is_resumed and reference.content.get(path) != digest:
            killed.findings.append(f"left behind or half-written: {path}")
    _run_again(command, reference, home, killed)
    return killed


def _run_again(command: Command, reference: Reference, home: Path, killed: Killed) -> None:
    if not command.in_place and all((home / output).exists() for output in command.outputs):
        if (left := contents(home)) != reference.content and killed.moment.number != signal.SIGKILL:
            killed.findings.append(f"not as uncut: {sorted(left.items() ^ reference.content.items())}")
        return
    again = _run(command, home)
    if again.status != 0:
        killed.findings.append(f"the next run fails: {again.told[-1500:]}")
        return
    # Whatever is written next under the same name in the cache removes what was abandoned there.
    left = {path: digest for path, digest in contents(home).items() if not _is_abandoned_in_cache(path)}
    if left != reference.content:
        killed.findings.append(f"the next run differs: {sorted(left.items() ^ reference.content.items())}")


def _is_abandoned_in_cache(path: str) -> bool:
    return path.startswith(f"{_CACHE}/") and _ABANDONED.fullmatch(path) is not None
