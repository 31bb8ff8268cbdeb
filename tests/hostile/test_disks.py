"""Disks that are read-only or full, and limits of file sizes: a line for every command that writes, and nothing left.

The disks are small file systems in memory, of a process's own, for which Linux asks for the right to administer the
system; without it those tests are skipped.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
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
    "bom",
    "build",
    "certify",
    "chat demo",
    "evaluate",
    "export",
    "fit",
    "record",
    "report",
    "reveal and release",
    "sign",
    "tune",
)
# Quick enough for every run of the tests: the others take the same ways to the disk.
_QUICK = ("bake a graph", "evaluate", "fit", "record", "tune")
_SIZED = [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in _NAMES]
_NEW_NAMESPACE, _PRIVATE, _READ_ONLY, _REMOUNT = 0x20000, 1 << 18 | 1 << 14, 1, 32
_PAGE = 4096


def _mount(place: Path, room: int, beside: Path | None = None, *, entries: int = 100, read_only: bool = False) -> None:
    """A file system in memory at ``place``, for this process alone. Raises ``PermissionError`` where it may not.

    It has ``room`` bytes and ``entries`` beside what lies in the directory ``beside``, which is copied into it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    held = [] if beside is None else list(beside.rglob("*"))
    size = sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in held if path.is_file())
    options = f"size={size + room},nr_inodes={len(held) + entries}".encode()
    for result in (
        libc.unshare(_NEW_NAMESPACE),
        libc.mount(b"none", b"/", None, _PRIVATE, None),
        libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, options),
    ):
        if result != 0:
            raise PermissionError(os.strerror(ctypes.get_errno()))
    if beside is not None:
        shutil.copytree(beside, place, dirs_exist_ok=True)
    if read_only and libc.mount(b"none", os.fsencode(place), None, _REMOUNT | _READ_ONLY, None) != 0:
        raise PermissionError(os.strerror(ctypes.get_errno()))


def _may_mount() -> bool:
    process = os.fork()
    if process == 0:
        try:
            _mount(Path("/tmp"), _PAGE)
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
    (home / "new").mkdir(exist_ok=True)
    return command.run(home, prepare=prepare)


def _edited(command: Command) -> Path | None:
    """What a command changes in place, where the disk is mounted."""
    return command.beside / "new" if command.in_place and command.beside is not None else None


def _require_one_line(done: Done, command: Command, cause: str, *left: str) -> str:
    """``left``: what may be there but for what the command keeps for the next run, and what it was given."""
    assert done.status == 1, done.told
    assert "Traceback" not in done.told, done.told
    *before, error = done.told.splitlines()
    assert error.startswith("error: "), done.told
    assert cause in error, error
    assert not any(line.startswith("error: ") for line in before)
    beside = command.beside
    given = set() if beside is None else {path.relative_to(beside).as_posix() for path in beside.rglob("*")}
    may_be = (*left, *command.resumed)
    kept = [path for path in done.left if not any(path == name or path.startswith(f"{name}/") for name in may_be)]
    assert [path for path in kept if path == "new" or path not in given] == ["new", "tmp"]
    return error


def test_every_command_is_known(known: Mapping[str, Command]) -> None:
    assert sorted(known) == sorted(_NAMES)


@needs_mount
@pytest.mark.parametrize("name", _NAMES)
def test_a_read_only_target_fails_before_the_work(known: Mapping[str, Command], tmp_path: Path, name: str) -> None:
    edited = _edited(known[name])
    done = _run(known[name], tmp_path, lambda: _mount(tmp_path / "new", 1 << 20, edited, read_only=True))
    _require_one_line(done, known[name], "Read-only file system")
    assert len(done.told.splitlines()) == 1


@needs_mount
@pytest.mark.parametrize("name", _NAMES)
def test_a_disk_without_any_room_fails_before_the_work(known: Mapping[str, Command], tmp_path: Path, name: str) -> None:
    def full() -> None:
        # The directory itself is one.
        _mount(tmp_path / "new", _PAGE, _edited(known[name]), entries=2)
        (tmp_path / "new" / "filler").touch()

    done = _run(known[name], tmp_path, full)
    _require_one_line(done, known[name], "No space left", "new/filler")
    assert len(done.told.splitlines()) == 1


@needs_mount
@pytest.mark.parametrize("name", _SIZED)
@pytest.mark.parametrize("pages", [1, 16])
def test_a_disk_that_becomes_full(known: Mapping[str, Command], tmp_path: Path, name: str, pages: int) -> None:
    command = known[name]

    def mount() -> None:
        _mount(tmp_path / "new", pages * _PAGE, _edited(command))
        if pages == 1:  # less than that: what is written first has one
            (tmp_path / "new" / "filler").write_bytes(b"1")

    done = _run(command, tmp_path, mount)
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
