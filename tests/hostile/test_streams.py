"""Standard output that is full or closed, narrow encodings, a directory that is gone, Ctrl-C while libraries load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests import plan_examples
from tests.recipe_files import NEURON_ADJUST, write_recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="devices and signals of Linux")

_BAKEOUT = [sys.executable, "-m", "bakeout"]


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bakeout.models.plan.plan_file import save_plan

    path = tmp_path_factory.mktemp("streams") / "plán ≥ β"
    save_plan(plan_examples.plan(), path)
    return path


def _run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.run([*_BAKEOUT, *map(str, arguments)], **settings)


@pytest.mark.parametrize(
    ("arguments", "buffered"),
    [(["--help"], ""), (["--help"], "1"), (["inspect", "PLAN"], ""), (["inspect", "PLAN", "--json"], "1")],
)
def test_full_standard_output_is_told_in_a_line(plan_file: Path, arguments: list[str], buffered: str) -> None:
    named = [plan_file if argument == "PLAN" else argument for argument in arguments]
    with Path("/dev/full").open("w") as full:
        ended = _run(*named, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": buffered})
    assert ended.returncode == 1
    assert "Standard output cannot be written: No space left on device" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["recipe", "--schema"], ["inspect", "PLAN"]])
def test_a_reader_that_has_gone_is_no_error_of_ours(plan_file: Path, arguments: list[str]) -> None:
    named = [plan_file if argument == "PLAN" else argument for argument in arguments]
    reader, writer = os.pipe()
    os.close(reader)
    ended = _run(*named, stdout=writer)
    os.close(writer)
    assert ended.returncode == 1
    assert ended.stderr == ""


def test_without_standard_streams_the_work_is_done(plan_file: Path, tmp_path: Path) -> None:
    command = f'"$0" -m bakeout inspect "$1" >&- 2>&- && "$0" -m bakeout inspect "$1" --json 2>&- > "{tmp_path}/out"'
    ended = subprocess.run(["sh", "-c", command, sys.executable, str(plan_file)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out").read_text())["schema"] == 1


def test_progress_that_nobody_takes_stops_no_work(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, [NEURON_ADJUST])
    with Path("/dev/full").open("w") as full:
        ended = _run("fit", recipe, "-o", tmp_path / "plan", stderr=full)
    assert ended.returncode == 0
    assert (tmp_path / "plan").is_file()


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("latin-1", ["recipe", "--explain", "neuron_adjust"]),
        ("ascii", ["inspect", "PLAN"]),
        ("latin-1", ["inspect", "PLAN", "--json"]),
        ("ascii", ["inspect", "β"]),
    ],
)
def test_an_encoding_without_our_characters_gets_escapes(plan_file: Path, encoding: str, arguments: list[str]) -> None:
    named = [plan_file if argument == "PLAN" else argument for argument in arguments]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    ended = _run(*named, env=environment, encoding=encoding, errors="replace")
    assert "Traceback" not in ended.stderr
    assert ended.returncode == (1 if "β" in arguments else 0)
    if "--json" in arguments:
        assert json.loads(ended.stdout)["schema"] == 1


def test_the_c_locale(plan_file: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert _run("inspect", plan_file, env=environment).returncode == 0


def test_a_directory_that_is_gone_is_told_in_a_line(tmp_path: Path) -> None:
    command = f'mkdir "{tmp_path}/gone" && cd "{tmp_path}/gone" && rmdir "{tmp_path}/gone" && exec "$@"'
    for arguments in (["inspect", "plan"], ["inspect", "plan", "--json"], ["fit", "recipe.yaml", "-o", "plan"]):
        ended = subprocess.run(["sh", "-c", command, "sh", *_BAKEOUT, *arguments], capture_output=True, text=True)
        assert ended.returncode == 1
        assert "The current directory is not there any more" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_an_ignored_hangup_stays_ignored(plan_file: Path) -> None:
    program = (
        "import os, signal; from bakeout.export.cli.signals import end_by_signals\n"
        "end_by_signals(); os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    )
    ended = subprocess.run(["nohup", sys.executable, "-c", program], capture_output=True, text=True)
    assert "alive" in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_libraries_load_ends_in_a_line(llama_checkpoint: Path, tmp_path: Path, number: int) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, [NEURON_ADJUST])
    # Where the tests run in the background of a script, or by nohup, they inherit ignored signals.
    loading = (
        f"import signal; signal.signal({int(number)}, signal.SIG_DFL)\n"
        "from bakeout.export.cli.signals import end_by_signals\n"
        "end_by_signals(); print(flush=True); from bakeout.__main__ import main; main()"
    )
    random = Random(number)
    ended_in_time = 0
    for _ in range(2):
        arguments = [sys.executable, "-c", loading, "fit", str(recipe), "-o", str(tmp_path / "plan")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            time.sleep(random.uniform(0, 1.5))
            # On a busy machine the pause can last until everything is done.
            is_late = process.poll() is not None
            process.send_signal(number)
            told = process.stderr.read()
        # Nor does a signal reach an interpreter that has written everything and ends.
        if is_late or (process.returncode == 0 and (tmp_path / "plan").exists()):
            assert process.returncode == 0, told
            (tmp_path / "plan").unlink()
            continue
        ended_in_time += 1
        assert process.returncode == 128 + number, told
        assert told.splitlines()[-1] == "interrupted"
        assert "Traceback" not in told
        assert "ignored" not in told
        assert not (tmp_path / "plan").exists()
    assert ended_in_time


def test_what_is_written_to_chat_may_be_in_any_encoding(tmp_path: Path) -> None:
    program = (
        "import sys; from bakeout.export.cli.console import set_up_streams\n"
        "set_up_streams(); print(ascii(sys.stdin.readline()))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run([sys.executable, "-c", program], input=b"\xe4\n", capture_output=True, env=environment)
    assert ended.stdout == b"'\\ufffd\\n'\n"
