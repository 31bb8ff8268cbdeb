"""A method of another package is there wherever ours are: nothing of ours is changed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.recipe_files import write_recipe

PLUGIN = Path(__file__).parent / "forget_direction"
# Runs commands in one process, and prints what each printed.
RUN = """
import json, sys
from click.testing import CliRunner
from bakeout.export.cli.main import main
def run(arguments):
    result = CliRunner().invoke(main, arguments)
    return {"status": result.exit_code, "out": result.stdout, "err": result.stderr}
print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
"""


def _run(directory: Path, commands: Sequence[Sequence[str | Path]]) -> list[dict[str, Any]]:
    """What commands print in a process that has the packages in ``directory`` installed."""
    path = os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = json.dumps([[str(argument) for argument in arguments] for arguments in commands])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", RUN], input=given, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _installed(plugin: Path, directory: Path) -> Path:
    """The plug-in in ``directory``, with the metadata that an installation writes from its ``pyproject.toml``."""
    shutil.copytree(plugin, directory)
    program = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _installed(PLUGIN, tmp_path_factory.mktemp("plugin") / "site")


@pytest.fixture(scope="module")
def printed(
    directory: Path, llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, dict[str, Any]]:
    """What every command prints, from the recipe to the evaluated artifact."""
    work = tmp_path_factory.mktemp("work")
    entry = {"forget_direction": {"forget": "sums", "layer": 2, "strength": "auto"}}
    recipe = write_recipe(work, llama_checkpoint, [entry])
    wrong = write_recipe(work / "wrong", llama_checkpoint, [{"forget_direction": {"forget": "sums", "strenght": 1}}])
    tuned, artifact = work / "tuned.yaml", work / "artifact"
    commands: dict[str, list[str | Path]] = {
        "explain": ["recipe", "--explain"],
        "explain method": ["recipe", "--explain", "forget_direction"],
        "schema": ["recipe", "--schema"],
        "help": ["tune", "--help"],
        "wrong": ["fit", wrong, "-o", work / "wrong.safetensors"],
        "untuned": ["build", recipe, "-o", artifact],
        "tune": ["tune", recipe, "-o", tuned, "--trials", "3", "--prompts", "10", "--json"],
        "build": ["build", tuned, "-o", artifact],
        "inspect": ["inspect", artifact],
        "inspect as JSON": ["inspect", artifact, "--json"],
        "evaluate": ["evaluate", artifact, "--data", work / "data" / "sums.test.jsonl", "--json"],
    }
    found = dict(zip(commands, _run(directory, list(commands.values())), strict=True))
    return {**found, "card": {"status": 0, "out": (artifact / "README.md").read_text(encoding="utf-8")}}


def test_it_is_explained(printed: Mapping[str, dict[str, Any]]) -> None:
    assert "forget_direction\n      Forget Direction (a test of Bakeout). Takes the mean" in printed["explain"]["out"]
    text = printed["explain method"]["out"]
    assert "  strength: `auto` or number > 0; default 1.0\n" in text
    assert "`bakeout tune` searches, where `strength: auto`: strength (0.1 to 4)." in text
    assert "forget_direction" in json.loads(printed["schema"]["out"])["$defs"]["InterventionEntry"]["properties"]


def test_its_mistakes_in_a_recipe_are_told(printed: Mapping[str, dict[str, Any]]) -> None:
    assert printed["wrong"]["status"] == 1
    assert "unknown key 'strenght' (did you mean 'strength'?)" in printed["wrong"]["err"]


def test_it_is_tuned_before_it_is_built(printed: Mapping[str, dict[str, Any]]) -> None:
    assert "forget_direction strength: auto" in " ".join(printed["help"]["out"].split())
    assert printed["untuned"]["status"] == 1
    assert "`strength: auto` of `forget_direction` takes a search" in printed["untuned"]["err"]
    assert printed["tune"]["status"] == 0, printed["tune"]["err"]
    tuned = json.loads(printed["tune"]["out"])
    assert 0.1 <= tuned["filled"]["0"]["strength"] <= 4
    assert len(tuned["trials"]["0"]) == 3


def test_it_is_built_described_and_evaluated(printed: Mapping[str, dict[str, Any]]) -> None:
    assert printed["build"]["status"] == 0, printed["build"]["err"]
    assert "### 1. Forget Direction\n" in printed["card"]["out"]
    assert "Forget Direction: 1 weight in 1 layer" in printed["inspect"]["out"]
    (intervention,) = json.loads(printed["inspect as JSON"]["out"])["interventions"]
    assert (intervention["kind"], intervention["method"]) == ("low_rank_update", "forget_direction")
    assert intervention["report"]["forget"] == ["sums"]
    assert {row["data"] for row in json.loads(printed["evaluate"]["out"])["rows"]} == {"sums.test"}


def test_one_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path) -> None:
    broken = shutil.copytree(PLUGIN, tmp_path / "broken")
    (broken / "forget_direction" / "__init__.py").write_text("import nowhere_to_be_found\n")
    (told,) = _run(_installed(broken, tmp_path / "site"), [["recipe", "--explain"]])
    assert told["status"] == 1
    line = "The method 'forget_direction' of forget-direction cannot be loaded: ModuleNotFoundError: No module named"
    assert line in told["err"]
    assert told["err"].strip().count("\n") == 0
