"""What starting costs, counted in modules: seconds depend on the machine and on what else it does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_LOADED = (
    "import json, sys; before = set(sys.modules)\n"
    "{program}\n"
    "print(json.dumps(sorted({{name.partition('.')[0] for name in set(sys.modules) - before}})), len(sys.modules))"
)


def _loaded(program: str) -> tuple[set[str], int]:
    """The packages outside the standard library that a program loads, and how many modules there are behind it."""
    run = subprocess.run([sys.executable, "-c", _LOADED.format(program=program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    packages, count = run.stdout.splitlines()[-1].rsplit(" ", 1)
    return set(json.loads(packages)) - sys.stdlib_module_names, int(count)


def test_importing_bakeout_loads_nothing_else() -> None:
    packages, count = _loaded("import bakeout")
    assert packages == {"bakeout"}
    assert count < 150


def test_the_version_costs_no_library() -> None:
    assert _loaded("import bakeout; bakeout.__version__")[0] == {"bakeout"}


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["--version"]])
def test_help_loads_click_alone(arguments: list[str]) -> None:
    program = f"""
from click.testing import CliRunner
from bakeout.export.cli.main import main
assert CliRunner().invoke(main, {arguments}).exit_code == 0"""
    packages, count = _loaded(program)
    assert packages == {"bakeout", "click"}
    assert count < 300
