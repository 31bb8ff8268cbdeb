"""The wheel: what it holds, and what it does in environments of its own, with the extras and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from bakeout.models.extras import EXTRAS

from tests.test_base_install import ABSENT

ROOT = Path(__file__).parents[1]
FLOORS = ("models", "graph_passes", "export")
# What [fit,optimum,report] does not bring.
ABSENT_FROM_DEMO = [name for name in ABSENT if EXTRAS.get(name, "harness") not in ("fit", "optimum", "report")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m build`` makes of a copy of the sources: an sdist, and of that the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, directory / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    # Without isolation, so that nothing is downloaded.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    built = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (directory / "dist").glob("*.whl")
    return path


def test_it_holds_every_file_of_the_floors_and_nothing_else(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix() for floor in FLOORS for path in (ROOT / floor).rglob("*") if path.is_file()
    }
    expected = {f"bakeout/{name.removeprefix('export/public/')}" for name in files if "__pycache__" not in name}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def _installed(wheel: Path, directory: Path, absent: list[str]) -> Path:
    """An environment with the wheel in it, and of the tests' own libraries all but the ``absent``: its scripts."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    blocking = f"import sys; sys.modules.update(dict.fromkeys({absent}))"
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{blocking}\n")
    return directory / "bin"


def _run(command: Path, *arguments: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_with_its_extras_it_runs_the_demo_whose_plan_it_bakes_alone(wheel: Path, tmp_path: Path) -> None:
    whole = _installed(wheel, tmp_path / "whole", ABSENT_FROM_DEMO)
    located = _run(whole / "python", "-c", "import bakeout; print(bakeout.__file__)", cwd=tmp_path)
    assert Path(located.strip()).is_relative_to(tmp_path)
    assert "forgotten" in _run(whole / "bakeout", "demo", "-o", "demo", cwd=tmp_path)
    alone = _installed(wheel, tmp_path / "alone", ABSENT)
    for method in ("neuron-adjust", "key-space-detection"):
        artifact, plan = f"baked-{method}", f"demo/{method}/plan.safetensors"
        _run(alone / "bakeout", "bake", "demo/base", plan, "-o", artifact, cwd=tmp_path)
        _run(alone / "bakeout", "inspect", artifact, cwd=tmp_path)
        _run(alone / "bakeout", "verify", artifact, "--checks", "files,graph,canary", cwd=tmp_path)
        assert _run(alone / "bakeout", "chat", artifact, "--prompt", "12 + 7 =", cwd=tmp_path).strip()
        baked, built = (tmp_path / directory / "model.onnx" for directory in (artifact, f"demo/{method}"))
        assert baked.read_bytes() == built.read_bytes()
