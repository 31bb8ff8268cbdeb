"""The floors: export, graph_passes, models. Imports run downwards, and each floor stays free of what it never knows."""

from __future__ import annotations

import subprocess
import sys
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
        ("bakeout.graph_passes.apply", TORCH),
        ("bakeout.export.artifacts.artifact", {"torch"}),
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
    needed: set[str] = set()
    waiting = [("bakeout", extra) for extra in ("", "test", "lint")]
    while waiting:
        name, extra = waiting.pop()
        for requirement in map(Requirement, distribution(name).requires or []):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if wanted and (brought := canonicalize_name(requirement.name)) not in needed:
                needed.add(brought)
                # torch itself pins the CUDA packages of its build.
                if brought != "torch":
                    waiting.extend((brought, extra) for extra in ("", *requirement.extras))
    # The project's tests need one of its own extras.
    assert needed - pinned <= {"bakeout"}
