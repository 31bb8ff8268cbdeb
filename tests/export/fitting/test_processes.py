"""Several processes fit one plan, byte for byte that of one process, and the first one alone writes it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main

from tests.recipe_files import NEURON_ADJUST, write_recipe

_CHOSEN = {"key_space_detection": {"forget": "sums", "epsilon": 0.1}}
_PRUNING = {"selective_pruning": {"forget": "sums", "ratio": 0.01}}
_LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    "accelerate": ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "-m"],
}


def _run(module: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    environment |= {"OMP_NUM_THREADS": "1", "BAKEOUT_CACHE": str(directory / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *module], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_give_the_plan_of_one(llama_checkpoint: Path, tmp_path: Path, launcher: str) -> None:
    recipe = str(write_recipe(tmp_path, llama_checkpoint, [_PRUNING, NEURON_ADJUST, _CHOSEN]))
    single = _run(["bakeout", "fit", recipe, "-o", str(tmp_path / "one.safetensors"), "--no-cache"], tmp_path)
    assert single.returncode == 0, single.stderr
    # The second time there is nothing left to probe.
    for name in ("two", "again"):
        plan = tmp_path / f"{name}.safetensors"
        ran = _run([*_LAUNCHERS[launcher], "bakeout", "fit", recipe, "-o", str(plan)], tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert plan.read_bytes() == (tmp_path / "one.safetensors").read_bytes()
        assert ran.stdout.count("Next: bakeout bake") == 1
        # Each message once, as of one process.
        for message in set(single.stderr.splitlines()):
            assert ran.stderr.splitlines().count(message) <= single.stderr.splitlines().count(message)


@pytest.mark.parametrize("launcher", _LAUNCHERS)
def test_other_commands_refuse_several_processes(llama_checkpoint: Path, tmp_path: Path, launcher: str) -> None:
    """Which shows, too, that each launcher starts several."""
    recipe = str(write_recipe(tmp_path, llama_checkpoint, [_PRUNING]))
    ran = _run([*_LAUNCHERS[launcher], "bakeout", "build", recipe, "-o", str(tmp_path / "built")], tmp_path)
    assert ran.returncode != 0
    assert "`bakeout build` was started in several processes" in ran.stderr
    assert not (tmp_path / "built").exists()


def test_processes_that_read_different_data_are_told(llama_checkpoint: Path, tmp_path: Path) -> None:
    for rank in ("0", "1"):
        write_recipe(tmp_path / rank, llama_checkpoint, [_PRUNING])
    rows = tmp_path / "1" / "data" / "sums.probe.jsonl"
    rows.write_text(rows.read_text().replace(" = ", " =").replace("+", "plus"))
    # Each process fits the recipe of its rank.
    script = 'cd "$0/$RANK" && exec "$1" -m bakeout fit recipe.yaml -o plan.safetensors'
    ran = _run(
        [*_LAUNCHERS["torchrun"][:-1], "--no-python", "sh", "-c", script, str(tmp_path), sys.executable], tmp_path
    )
    assert ran.returncode != 0
    assert "The processes fit different recipes, models or data." in ran.stderr


def test_what_several_processes_cannot_share_is_refused(llama_checkpoint: Path, tmp_path: Path) -> None:
    entry: dict[str, Any] = {"instructions": ["1"], "patterns": ["1"], "retain": ["names"], "directory": "rounds"}
    recipe = str(write_recipe(tmp_path, llama_checkpoint, [{"reveal_and_release": entry}]))
    plan = tmp_path / "plan.safetensors"
    ran = _run([*_LAUNCHERS["torchrun"], "bakeout", "fit", recipe, "-o", str(plan)], tmp_path)
    assert ran.returncode != 0
    assert "several processes would write at once. Fit in one process." in ran.stderr
    assert not plan.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_the_others_is_ended_by_a_signal(
    llama_checkpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    recipe = str(write_recipe(tmp_path, llama_checkpoint, [NEURON_ADJUST]))
    # Where the tests run in the background of a script, or by nohup, they inherit ignored signals.
    heard = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)\nfrom bakeout.__main__ import main\nmain()"
    with socket.create_server(("127.0.0.1", 0)) as store:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.getsockname()[1])}
        process = subprocess.Popen(
            [sys.executable, "-c", heard, "fit", recipe, "-o", str(tmp_path / "plan.safetensors")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", **place},
            stderr=subprocess.PIPE,
            text=True,
        )
        store.settimeout(120)
        # A store that never answers.
        with store.accept()[0]:
            process.send_signal(number)
            told = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number
    assert "interrupted" in told


@pytest.mark.parametrize(
    ("left_over", "says"),
    [
        ({"WORLD_SIZE": "8"}, None),
        ({"WORLD_SIZE": "", "RANK": "0"}, None),
        ({"WORLD_SIZE": "8", "RANK": ""}, None),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is '0', no number of processes."),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "8", "RANK": "0"}, "was started in several processes"),
        ({"WORLD_SIZE": "a few", "RANK": "0"}, "WORLD_SIZE is 'a few', no number of processes."),
    ],
)
def test_a_process_that_nobody_launched_is_alone(
    left_over: dict[str, str], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["inspect", "missing"])
    assert result.exit_code == 1
    assert (says or "missing") in result.output
