"""ONNX Runtime reports home unless it is told not to, and writes a device's id and events below the cache directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bakeout.export.baking.bake import bake
from bakeout.models.extras import is_installed
from bakeout.models.plan import Plan

from tests.recipe_files import write_recipe

_SET = 'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")'
# Without a network at all, where the system lets users have that: compiled code asks no hook of Python's.
_UNSHARE = ["unshare", "-rn"]
_ALONE = (
    _UNSHARE if shutil.which("unshare") and not subprocess.call([*_UNSHARE, "true"], stderr=subprocess.DEVNULL) else []
)
_EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(home: Path, *arguments: str, given: str = "", **variables: str) -> str:
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home.mkdir()
    fresh = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "MPLCONFIGDIR": str(home.parent)}
    environment = unset | fresh | variables
    command = [*_ALONE, sys.executable, *arguments]
    done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_writes_nothing_below_the_home_directory(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    artifact = bake(llama_export, tiny_plan, tmp_path / "artifact").directory
    _run(tmp_path / "home", "-m", "bakeout", "verify", str(artifact), "--checks", "files,graph,canary")
    assert not list((tmp_path / "home").rglob("*"))


_TASK = """task: own
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{response}}"
generation_kwargs: {until: ["."], max_gen_toks: 2}
metric_list: [{metric: exact_match}]
"""
# Whatever asks for an address or a connection is written down, and gets none.
_WITHOUT_NETWORK = """
import os, sys
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        asked.append(f"{event} {arguments!r}")
        raise OSError("there is no network")
sys.addaudithook(watch)
from click.testing import CliRunner
from bakeout.export.cli.main import main
for line in sys.stdin.read().splitlines():
    arguments = line.split("\\t")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    assert not asked, (arguments, asked)
"""


def test_no_command_looks_for_a_network(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint)
    tuned = write_recipe(tmp_path / "tuned", llama_checkpoint, [{"neuron_adjust": {"forget": "sums", "ratio": "auto"}}])
    artifact, data = tmp_path / "artifact", tmp_path / "data" / "sums.test.jsonl"
    forget, retain = (tmp_path / "data" / f"{name}.probe.jsonl" for name in ("sums", "names"))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text(_TASK.replace("DATA", str(data)))
    commands: list[list[object]] = [
        ["build", recipe, "-o", artifact],
        ["inspect", artifact],
        ["verify", artifact, "--base", llama_checkpoint, "--data", data],
        ["evaluate", artifact, "--base", llama_checkpoint, "--data", data, "--text", data],
        ["evaluate", artifact, "--tasks", "own", "--task-directory", tasks],
        ["attack", artifact, "--data", data],
        ["assumptions", artifact, "--base", llama_checkpoint, "--forget", forget, "--retain", retain, "--length", "8"],
        ["tune", tuned, "-o", tmp_path / "filled.yaml", "--trials", "2", "--prompts", "4"],
        ["report", artifact, "-o", tmp_path / "report.html"],
        ["chat", artifact, "--prompt", "3 + 4 =", "--max-new-tokens", "4"],
    ]
    if not is_installed("lm_eval"):
        commands = [command for command in commands if "--tasks" not in command]
    lines = "\n".join("\t".join(map(str, command)) for command in commands)
    # Caches of what is downloaded lie elsewhere, and downloading is not forbidden by a variable.
    elsewhere = {"HF_HOME": str(tmp_path / "downloads"), "HF_HUB_OFFLINE": "0", "COLUMNS": "200"}
    _run(tmp_path / "home", "-c", _WITHOUT_NETWORK, given=lines, **elsewhere)
    assert not list((tmp_path / "home").rglob("*"))


def test_a_program_that_uses_the_library_writes_nothing_there(llama_export: Path, tmp_path: Path) -> None:
    program = f"from bakeout import Runner; print(Runner({str(llama_export)!r}).generate([[40, 41]], 2))"
    assert _run(tmp_path / "home", "-c", program).startswith("[[")
    assert not list((tmp_path / "home").rglob("*"))


def test_whoever_wants_telemetry_keeps_it(tmp_path: Path) -> None:
    program = "import bakeout, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert _run(tmp_path / "home", "-c", program, ORT_DISABLE_TELEMETRY="0") == "0\n"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(_EXAMPLES.rglob("*.py"))
        if re.search(r"^(import|from) onnxruntime", path.read_text(), re.MULTILINE)
    ],
    ids=lambda path: path.name,
)
def test_the_examples_turn_it_off_before_they_import_onnx_runtime(path: Path) -> None:
    text = path.read_text()
    imported = re.search(r"^(import|from) onnxruntime", text, re.MULTILINE)
    assert imported is not None
    assert _SET in text[: imported.start()]
