"""ONNX Runtime reports home unless it is told not to, and writes a device's id and events below the cache directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bakeout.export.baking.bake import bake
from bakeout.models.plan import Plan

_SET = 'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")'
_EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(home: Path, *arguments: str, **variables: str) -> str:
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home.mkdir()
    fresh = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "MPLCONFIGDIR": str(home.parent)}
    done = subprocess.run([sys.executable, *arguments], env=unset | fresh | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_writes_nothing_below_the_home_directory(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    artifact = bake(llama_export, tiny_plan, tmp_path / "artifact").directory
    _run(tmp_path / "home", "-m", "bakeout", "verify", str(artifact), "--checks", "hashes,graph,canary")
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
