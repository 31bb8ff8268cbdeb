"""Disks that are read-only or full, and limits of file sizes: a line for every command that writes, and nothing left.

The disks are small file systems in memory, of a process's own, for which Linux asks for the right to administer the
system; without it those tests are skipped.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.hostile.kills.inputs import Command, commands
from tests.hostile.kills.processes import Done

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked processes, and file systems in memory")

_NAMES = (
    "attack",
    "bake a checkpoint",
    "bake a graph",
    "build",
    "chat demo",
    "evaluate",
    "export",
    "fit",
    "report",
    "reveal and release",
    "tune",
)
# Quick enough for every run of the tests: the others take the same ways to the disk.
_QUICK = ("bake a graph", "evaluate", "fit", "tune")
_SIZED = [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in _NAMES]
_NEW_NAMESPACE, _PRIVATE, _READ_ONLY = 0x20000, 1 << 18 | 1 << 14, 1


def _mount(place: Path, options: str, flags: int = 0) -> None:
    """A file system in memory at ``place``, for this process alone. Raises ``PermissionError`` where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    for result in (
        libc.unshare(_NEW_NAMESPACE),
        libc.mount(b"none", b"/", None, _PRIVATE, None),
        libc.mount(b"none", os.fsencode(place), b"tmpfs", flags, options.encode()),
    ):
        if result != 0:
            raise PermissionError(os.strerror(ctypes.get_errno()))


def _may_mount() -> bool:
    process = os.fork()
    if process == 0:
        try:
            _mount(Path("/tmp"), "size=4k")
        except BaseException:  # noqa: BLE001 - whatever it is, it may not
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


needs_mount = pytest.mark.skipif(sys.platform != "linux" or not _may_mount(), reason="may not mount a file system")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Command]:
    every = commands(tmp_path_factory.mktemp("disks"))
    # Of several processes one writes, as it does alone.
    return {name: command for name, command in every.items() if command.ranks == 1}


def _run(command: Command, home: Path, prepare: Callable[[], None]) -> Done:
    command.prepare(home)
    (home / "new").mkdir()
    return command.run(home, prepare=prepare)


def _require_one_line(done: Done, command: Command, cause: str, *left: str) -> str:
    """``left``: what may be there but for what the command keeps for the next run, and what it was given."""
    assert done.status == 1, done.told
    assert "Traceback" not in done.told, done.told
    *before, error = done.told.splitlines()
    assert error.startswith("error: "), done.told
    assert cause in error, error
    assert not any(line.startswith("error: ") for line in before)
    given = () if command.beside is None else tuple(path.name for path in command.beside.iterdir())
    may_be = (*left, *command.resumed, *given)
    kept = [path for path in done.left if not any(path == name or path.startswith(f"{name}/") for name in may_be)]
    assert kept == ["new", "tmp"]
    return error


def test_every_command_is_known(known: Mapping[str, Command]) -> None:
    assert sorted(known) == sorted(_NAMES)


@needs_mount
@pytest.mark.parametrize("name", _NAMES)
def test_a_read_only_target_fails_before_the_work(known: Mapping[str, Command], tmp_path: Path, name: str) -> None:
    done = _run(known[name], tmp_path, lambda: _mount(tmp_path / "new", "size=1m", _READ_ONLY))
    _require_one_line(done, known[name], "Read-only file system")
    assert len(done.told.splitlines()) == 1


@needs_mount
@pytest.mark.parametrize("name", _NAMES)
def test_a_disk_without_any_room_fails_before_the_work(known: Mapping[str, Command], tmp_path: Path, name: str) -> None:
    def full() -> None:
        _mount(tmp_path / "new", "size=4k,nr_inodes=2")
        (tmp_path / "new" / "filler").touch()

    done = _run(known[name], tmp_path, full)
    _require_one_line(done, known[name], "No space left", "new/filler")
    assert len(done.told.splitlines()) == 1


@needs_mount
@pytest.mark.parametrize("name", _SIZED)
@pytest.mark.parametrize("size", ["4k", "64k"])
def test_a_disk_that_becomes_full(known: Mapping[str, Command], tmp_path: Path, name: str, size: str) -> None:
    # A page less than it says: what is written first has one.
    def small() -> None:
        _mount(tmp_path / "new", f"size={size}")
        (tmp_path / "new" / "filler").write_bytes(b"1")

    def room() -> None:
        _mount(tmp_path / "new", f"size={size}")

    command = known[name]
    done = _run(command, tmp_path, room if size == "64k" else small)
    if done.status != 0:  # small files fit into the larger
        error = _require_one_line(done, command, "", "new/filler")
        assert "No space left" in error or "are needed" in error


@pytest.mark.parametrize("name", _SIZED)
@pytest.mark.parametrize("size", [100, 3_000, 60_000])
def test_a_limit_of_file_sizes(known: Mapping[str, Command], tmp_path: Path, name: str, size: int) -> None:
    command = known[name]
    done = _run(command, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    if done.status != 0:  # small files keep to the larger ones
        _require_one_line(done, command, "File too large")
