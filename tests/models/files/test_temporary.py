"""Temporary directories vanish with their process; what killed ones left is removed, and nothing else."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bakeout.models.errors import BakeoutError
from bakeout.models.files.temporary import temporary_directory
from bakeout.models.files.writing import new_directory, replace_file, scratch_directory, write_file, write_files

from tests.directory_tree import tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows removes nothing of other processes")

_HOLDS_ONE = """
import sys, time
from pathlib import Path
from bakeout.models.files.writing import new_directory
with new_directory(Path(sys.argv[1])) as directory:
    (directory / "large").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(60)
"""


def _process_that_writes(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLDS_ONE, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_process_left_is_removed_by_the_next_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with _process_that_writes(tmp_path / "artifact") as process:
        process.kill()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".artifact.")
    assert left.name.endswith(".bakeout")
    with new_directory(tmp_path / "artifact"):
        pass
    assert tree(tmp_path) == ["artifact"]
    assert f"removed {left}, which a killed process had left" in caplog.text


def test_what_a_running_process_has_stays(tmp_path: Path) -> None:
    with _process_that_writes(tmp_path / "artifact") as process:
        (running,) = tmp_path.iterdir()
        with pytest.raises(KeyError), new_directory(tmp_path / "artifact"):
            raise KeyError
        write_file(tmp_path / "artifact", "faster")
        assert (running / "new" / "large").stat().st_size == 1000
        process.kill()
    assert (tmp_path / "artifact").read_text() == "faster"


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".artifact").mkdir()
    (tmp_path / ".12345678.bakeout").mkdir()
    (tmp_path / ".artifact.12345678").mkdir()
    (tmp_path / ".artifact.1234567g.bakeout").mkdir()
    (tmp_path / ".other.12345678.bakeout").mkdir()
    (tmp_path / ".artifact.more.12345678.bakeout").mkdir()
    (tmp_path / ".artifact.00000000.bakeout").write_text("a file")
    (tmp_path / ".artifact.00000001.bakeout").symlink_to(tmp_path / ".other.12345678.bakeout")
    before = tree(tmp_path)
    write_file(tmp_path / "artifact", "content")
    assert tree(tmp_path) == sorted([*before, "artifact"])


def test_a_signal_right_after_it_was_made_leaves_nothing(tmp_path: Path) -> None:
    """Between the call that makes a directory and whatever remembers it."""
    program = """
import os, signal, sys
from pathlib import Path
from bakeout.export.cli.signals import end_by_signals
from bakeout.models.files.writing import new_directory, scratch_directory
made = os.mkdir
def make(path, *rest):
    made(path, *rest)
    if str(path).endswith(".bakeout"):
        os.kill(os.getpid(), signal.SIGTERM)
os.mkdir = make
end_by_signals()
with new_directory(Path(sys.argv[1]) / "below" / "artifact"):
    print("not reached")
"""
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert ended.stdout == ended.stderr == ""
    assert tree(tmp_path) == []


def test_what_no_block_removed_goes_at_the_end_of_the_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bakeout.models.files import temporary\n"
        "temporary._create(Path(sys.argv[1]), 'scratch')"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    assert tree(tmp_path) == []


def test_what_ends_with_its_owner_may_end_after_all_others(tmp_path: Path) -> None:
    """The exit handler of weakref runs behind ours where something else was finalised first."""
    program = """
import sys, tempfile, weakref
from contextlib import ExitStack
from pathlib import Path
earlier = tempfile.TemporaryDirectory()
from bakeout.models.files.writing import scratch_directory
directory = ExitStack()
directory.enter_context(scratch_directory(Path(sys.argv[1])))
owner = set()
weakref.finalize(owner, directory.close)
"""
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


def test_a_forked_process_does_not_remove_its_parents(tmp_path: Path) -> None:
    from bakeout.models.files.temporary import discard_all

    with temporary_directory(tmp_path, "scratch") as directory:
        process = os.fork()
        if process == 0:
            discard_all()
            os._exit(0)
        os.waitpid(process, 0)
        assert directory.is_dir()
    assert tree(tmp_path) == []


def test_many_processes_write_beside_each_other(tmp_path: Path) -> None:
    """One of them wins each name, the others are told so; none takes another's temporary directory for left behind."""
    program = """
import sys
from pathlib import Path
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import new_directory, write_file
for number in range(25):
    for kind in ("file", "directory"):
        path = Path(sys.argv[1]) / f"{kind}{number}"
        try:
            if kind == "file":
                write_file(path, "content")
            else:
                with new_directory(path) as directory:
                    (directory / "file").write_text("content")
            print("wrote", path.name)
        except BakeoutError as error:
            assert "exists already" in str(error), error
"""
    crew = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) for _ in "1234"
    ]
    told = [line for process in crew for line in process.communicate()[0].splitlines()]
    assert all(process.returncode == 0 for process in crew)
    assert sorted(told) == sorted(f"wrote {kind}{number}" for number in range(25) for kind in ("file", "directory"))
    assert not [path for path in tree(tmp_path) if path.startswith(".")]


@pytest.mark.parametrize("kind", ["empty directory", "directory", "file"])
def test_where_another_process_is_faster_its_output_stays(tmp_path: Path, kind: str) -> None:
    for name in ("file", "directory"):
        path = tmp_path / name

        def other_output(path: Path = path) -> None:
            if kind == "file":
                path.write_text("theirs")
            else:
                path.mkdir()
                if kind == "directory":
                    (path / "theirs").touch()

        with pytest.raises(BakeoutError, match="exists already"):
            if name == "directory":
                with new_directory(path):
                    other_output()
            else:
                other_output()
                write_file(path, "mine")
        assert kind != "file" or path.read_text() == "theirs"
        assert kind != "directory" or (path / "theirs").exists()
    assert not [path for path in tree(tmp_path) if path.startswith(".")]


def test_files_that_belong_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    write_files({tmp_path / "a": "one", tmp_path / "below" / "b": b"two"})
    assert tree(tmp_path) == ["a", "below", "below/b"]
    with pytest.raises(BakeoutError, match="b exists already"):
        write_files({tmp_path / "c": "three", tmp_path / "below" / "b": b"four"})
    assert tree(tmp_path) == ["a", "below", "below/b"]
    assert (tmp_path / "below" / "b").read_bytes() == b"two"


def test_scratch_is_the_systems_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_directory() as directory:
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o077 == 0
    assert tree(tmp_path) == []


def test_an_earlier_file_is_there_or_the_new_one(tmp_path: Path) -> None:
    """Whoever looks while a file is replaced."""
    path = tmp_path / "file"
    replace_file(path, "a" * 100_000)
    until = time.monotonic() + 0.5
    writer = os.fork()
    if writer == 0:
        while time.monotonic() < until:
            replace_file(path, "b" * 100_000)
        os._exit(0)
    while time.monotonic() < until:
        assert path.read_text() in ("a" * 100_000, "b" * 100_000)
    os.waitpid(writer, 0)
