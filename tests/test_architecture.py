"""The floors: export, graph_passes, models. Imports run downwards, and each floor stays free of what it never knows."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TORCH = {"torch", "transformers", "optimum"}
ONNX = {"onnx", "onnx_ir", "onnxruntime", "onnxscript"}


def test_imports_keep_to_their_floors() -> None:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    linted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("bakeout.models.plan.plan_file", TORCH | ONNX),
        ("bakeout.models.plan.receipt", TORCH | ONNX),
        ("bakeout.models.data.rows", {"torch"} | ONNX),
        ("bakeout.models.methods.registry", TORCH | ONNX),
        ("bakeout.export.recipes.interventions", TORCH | ONNX),
        ("bakeout.graph_passes.apply", TORCH),
        ("bakeout.export.artifacts.manifest", {"torch"}),
        ("bakeout.models.files.writing", TORCH | ONNX),
    ],
)
def test_importing_a_module_leaves_these_libraries_alone(module: str, forbidden: set[str]) -> None:
    """What import-linter cannot see: libraries that other libraries bring in."""
    program = f"import {module}, sys; print(*sorted(set({sorted(forbidden)}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert loaded.stdout.split() == []


def test_the_packages_do_not_claim_common_names() -> None:
    """Nothing called ``export`` or ``models`` may land in anybody's site-packages."""
    program = "import importlib.util as u; print(*(n for n in ('export', 'models', 'graph_passes') if u.find_spec(n)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.split() == []


def test_everything_that_is_installed_is_pinned() -> None:
    """``constraints.txt`` names all that the project, its tests and its linters need, without local versions."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line and "/" not in line for line in lines)
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines}
    asked: set[tuple[str, str]] = set()
    waiting = {("bakeout", extra) for extra in ("", "test", "lint")}
    while waiting:
        asked.add(pair := waiting.pop())
        name, extra = pair
        for requirement in map(Requirement, distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                brought = canonicalize_name(requirement.name)
                # torch itself pins the CUDA packages of its build.
                extras = () if name == "torch" else ("", *requirement.extras)
                waiting |= {(brought, extra) for extra in extras} - asked
    assert {name for name, _ in asked} - {"bakeout"} <= pinned


def test_every_folder_of_modules_is_installed() -> None:
    """Folders map to packages one to one, so that a wheel lacks none."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        file.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for floor in ("models", "graph_passes", "export")
        for file in (ROOT / floor).rglob("*.py")
    }
    packages = {f"bakeout.{folder}" for folder in folders - {"export.public"}} | {"bakeout"}
    assert sorted(packages) == settings["packages"]


FLOORS = ("models", "graph_passes", "export")


def _modules(floor: str) -> list[Path]:
    return [path for path in (ROOT / floor).rglob("*.py") if not path.name.startswith("__")]


@pytest.mark.parametrize("floor", FLOORS)
def test_no_folder_has_more_than_twelve_modules(floor: str) -> None:
    """One module a command, a method, an intervention kind or a grader: these folders may grow."""
    count = Counter(
        path.parent for path in _modules(floor) if path.parent.name not in {"cli", "methods", "kinds", "graders"}
    )
    assert not {str(folder): modules for folder, modules in count.items() if modules > 12}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_module_is_known_by_its_name(floor: str) -> None:
    """A command may be called as its subject is, a kind as its method, and every method has the same few files.

    A shape of regions has a module of its name wherever one is needed.
    """
    named = [
        path.name
        for path in _modules(floor)
        if path.parent.name not in {"cli", "kinds", "regions"}
        and not ("methods" in path.parts and path.name in {"fit.py", "options.py"})
    ]
    assert not [name for name, count in Counter(named).items() if count > 1]
