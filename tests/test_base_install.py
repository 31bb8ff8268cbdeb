"""The base install: it bakes a plan into a graph, inspects, chats and verifies without what the extras bring."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bakeout.export.baking.bake import bake
from bakeout.models.extras import EXTRAS
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests.recipe_files import write_recipe, write_rows

ROOT = Path(__file__).parents[1]
# What the extras bring, themselves or through what they need.
ABSENT = sorted({*EXTRAS, "datasets", "evaluate", "pandas", "sklearn"})
COMMAND = (
    f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
    "from bakeout.export.cli.main import main; main(prog_name='bakeout')"
)


def _bakeout(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def plan_file(tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "plan.safetensors"
    save_plan(tiny_plan, path)
    return path


@pytest.fixture(scope="module")
def artifact(llama_export: Path, plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that the base install baked."""
    directory = tmp_path_factory.mktemp("base") / "artifact"
    baked = _bakeout("bake", llama_export, plan_file, "-o", directory)
    assert baked.returncode == 0, baked.stderr
    return directory


def test_it_bakes_what_the_whole_install_bakes(
    artifact: Path, llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    whole = bake(llama_export, tiny_plan, tmp_path / "artifact").directory
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_it_edits_a_checkpoint_whose_canary_needs_torch(tmp_path: Path) -> None:
    fixtures = ROOT / "tests" / "fixtures" / "v0.1.0"
    plan = fixtures / "plans" / "weight_methods.safetensors"
    baked = _bakeout("bake", fixtures / "checkpoint", plan, "--to", "safetensors", "-o", "out", cwd=tmp_path)
    assert baked.returncode == 0, baked.stderr
    verified = _bakeout("verify", tmp_path / "out", "--checks", "files,tensors,canary")
    states = [line.split(maxsplit=2) for line in verified.stdout.replace("NOT OK", "NOT-OK").splitlines()]
    assert [state[:2] for state in states[:3]] == [["ok", "files"], ["ok", "tensors"], ["NOT-OK", "canary"]]
    assert states[2][2] == "skipped: it needs torch (pip install 'bakeout[fit]')"


def test_it_inspects_and_chats(artifact: Path, plan_file: Path) -> None:
    for path in (artifact, plan_file):
        shown = _bakeout("inspect", path)
        assert shown.returncode == 0, shown.stderr
        assert "Neuron Adjust" in shown.stdout
    answered = _bakeout("chat", artifact, "--prompt", "Hello", "--max-new-tokens", 3, "--json")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["prompt"] == "Hello"


def test_it_evaluates(artifact: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "sums.jsonl", [{"prompt": "1 + 1 =", "response": " 2"}])
    evaluated = _bakeout("evaluate", artifact, "--data", data, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert [row["data"] for row in json.loads(evaluated.stdout)["rows"]] == ["sums"]


def test_it_verifies_all_but_parity_which_names_its_remedy(artifact: Path, llama_checkpoint: Path) -> None:
    verified = _bakeout("verify", artifact, "--base", llama_checkpoint, "--json")
    checks = {check["name"]: check for check in json.loads(verified.stdout)["checks"]}
    assert verified.returncode == 1
    assert [name for name, check in checks.items() if check["ok"]] == ["files", "graph", "canary"]
    assert checks["parity"]["detail"] == "skipped: it needs torch (pip install 'bakeout[fit]')"
    asked = _bakeout("verify", artifact, "--checks", "files,graph,canary")
    assert asked.returncode == 0, asked.stdout
    assert asked.stdout.splitlines()[-1].split(maxsplit=2) == ["-", "parity", "not asked for"]


@pytest.mark.parametrize(
    ("arguments", "needs", "extra"),
    [
        (("fit", "RECIPE", "-o", "plan.safetensors"), "torch", "fit"),
        (("build", "RECIPE", "-o", "out"), "torch", "fit"),
        (("tune", "RECIPE", "-o", "out"), "torch", "fit"),
        (("bake", "CHECKPOINT", "PLAN", "-o", "out"), "transformers", "fit"),
        (("assumptions", "PLAN", "--base", "CHECKPOINT", "--forget", "DATA", "--retain", "DATA"), "torch", "fit"),
        (("report", "ARTIFACT", "-o", "page.html"), "matplotlib", "report"),
        (("demo", "-o", "out"), "matplotlib", "report"),
    ],
)
def test_what_an_extra_brings_is_named_in_one_line(
    arguments: tuple[str, ...],
    needs: str,
    extra: str,
    llama_checkpoint: Path,
    plan_file: Path,
    artifact: Path,
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint)
    names = {"RECIPE": recipe, "CHECKPOINT": llama_checkpoint, "PLAN": plan_file, "ARTIFACT": artifact}
    names["DATA"] = next(tmp_path.rglob("*.jsonl"))
    before = sorted(tmp_path.rglob("*"))
    failed = _bakeout(*(names.get(argument, argument) for argument in arguments), cwd=tmp_path)
    line = f"error: `bakeout {arguments[0]}` needs {needs}. Install it: pip install 'bakeout[{extra}]'."
    assert failed.stderr.splitlines()[-1] == line, failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.returncode == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_every_extra_is_named_for_what_it_brings() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    # Those that are not imported by the name that they are installed by.
    imported = {
        "cyclonedx_python_lib": ("cyclonedx", "jsonschema"),
        "onnxruntime_genai_cuda": ("onnxruntime_genai",),
        "pyopenssl": ("OpenSSL",),
    }
    # A package is named by the last of these extras that brings it.
    brought = {
        package: extra
        for extra in ("optimum", "gguf", "fit", "tune", "report", "harness", "genai", "parquet", "rouge", "trust")
        for name in (Requirement(line).name.replace("-", "_") for line in extras[extra])
        for package in imported.get(name, (name,))
    }
    brought = {package: extra for package, extra in brought.items() if package not in ("bakeout", "optimum_onnx")}
    assert brought == dict(EXTRAS)
