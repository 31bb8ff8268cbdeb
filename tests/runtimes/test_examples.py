"""The examples, run by the commands of ``examples/README.md``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ruamel.yaml import YAML

from tests.recipe_files import write_recipe
from tests.runtimes.javascript import installed
from tests.runtimes.served import KEPT, REFUSED, Served

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def demo(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make demo`` leaves, as far as the commands ask for it."""
    directory = tmp_path_factory.mktemp("demo") / "bakeout-demo"
    directory.mkdir()
    (directory / "base").symlink_to(served.base)
    (directory / "key-space-detection").symlink_to(served.artifact)
    return directory


def commands(example: str) -> list[tuple[str, str]]:
    """Each command of an example's section with the output that is shown under it."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## \[{example}\].*?(?=^## |\Z)", text, re.M | re.S)
    shown = "".join(re.findall(r"```console\n(.*?)```", section, re.S))
    return [(command, output) for command, output in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", shown, re.M)]


def run(command: str, folder: Path, demo: Path, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command.replace("../../bakeout-demo", str(demo))],
        cwd=folder,
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_are_found() -> None:
    assert [len(commands(example)) for example in ("python", "genai", "node", "browser", "cpp")] == [1, 1, 4, 2, 2]


@pytest.mark.parametrize("example", ["python", "genai"])
def test_python(demo: Path, example: str) -> None:
    if example == "genai":
        pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    for command, output in commands(example):
        assert run(command, EXAMPLES / example, demo) == output


def test_plain_python_is_short() -> None:
    assert len((EXAMPLES / "python" / "answer.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_node(demo: Path) -> None:
    folder = installed("node")
    for command, output in commands("node"):
        # The packages are installed already; what is baked is said with paths of this machine.
        if command.startswith("node "):
            assert run(command, folder, demo) == output
        elif command.startswith("bakeout "):
            run(command, folder, demo)


def test_lock_files_name_no_registry() -> None:
    for lock in EXAMPLES.glob("*/package-lock.json"):
        assert '"resolved"' not in lock.read_text(encoding="utf-8"), lock


@pytest.mark.slow
def test_cpp(served: Served, demo: Path, tmp_path: Path) -> None:
    ort = tmp_path / "onnxruntime"
    (ort / "lib").mkdir(parents=True)
    (ort / "include").symlink_to(_headers(tmp_path))
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (ort / "lib" / name).symlink_to(library)
    build, answer = (command for command, _ in commands("cpp"))
    run(build, EXAMPLES / "cpp", demo, ORT=str(ort))
    for skill in (REFUSED, KEPT):
        index = served.skills.index(skill)
        tokens = " ".join(map(str, served.ids[index]))
        heard = run(answer, EXAMPLES / "cpp", demo, ORT=str(ort), TOKENS=tokens)
        assert [int(token) for token in heard.split()] == served.expected[index]


def _headers(scratch: Path) -> Path:
    """ONNX Runtime's C++ headers, from a package of the npm registry that carries them (150 MB)."""
    for tool in ("g++", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    kept = REPOSITORY / ".venv" / "onnxruntime-headers"
    if not kept.exists():
        pack = ["npm", "pack", "--silent", "com.github.asus4.onnxruntime@0.4.9"]
        done = subprocess.run(pack, cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm pack failed: {' '.join(done.stderr.split())[:300]}")
        shutil.unpack_archive(scratch / done.stdout.strip(), scratch / "package", filter="data")
        (header,) = scratch.glob("package/**/ios-arm64_x86_64-simulator/**/onnxruntime_cxx_api.h")
        shutil.copytree(header.parent, kept)
    return kept


def test_the_workflow_is_pinned() -> None:
    steps = workflow()["jobs"]["artifact"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert [one.split("@")[0] for one in used] == [
        "actions/checkout",
        "actions/setup-python",
        "actions/upload-artifact",
    ]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one) for one in used)
    assert workflow()["permissions"] == {"contents": "read"}


@pytest.mark.slow
def test_the_workflows_commands(llama_checkpoint: Path, tmp_path: Path) -> None:
    """All but the installation, on a tiny model's recipe, one step after the other."""
    shutil.copytree(llama_checkpoint, tmp_path / "model")
    write_recipe(tmp_path, "model")
    shutil.copyfile(tmp_path / "data" / "sums.test.jsonl", tmp_path / "data" / "forget.jsonl")
    shutil.copyfile(tmp_path / "data" / "names.test.jsonl", tmp_path / "data" / "retain.jsonl")
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    variables = {name: str(value) for name, value in workflow()["env"].items()} | {"SIGNING_KEY": key.decode()}
    summary = tmp_path / "summary.md"
    for step in workflow()["jobs"]["artifact"]["steps"]:
        if "run" in step and step["name"] != "Install":
            # As GitHub runs them.
            script = f"set -eo pipefail\n{step['run']}"
            run(script, tmp_path, tmp_path, **variables, GITHUB_STEP_SUMMARY=str(summary))
    told = summary.read_text(encoding="utf-8")
    assert re.match(r"sha256 of bakeout.json: `[0-9a-f]{64}`\n", told)
    assert "Leak@64" in told
    assert not (tmp_path / "signing.key").exists()
    uploads = workflow()["jobs"]["artifact"]["steps"][-1]["with"]["path"].split()
    assert all((tmp_path / upload).exists() for upload in uploads)
    for name in ("model.onnx", "certificate.json", "model.sig"):
        assert (tmp_path / uploads[0] / name).is_file()


def workflow() -> Any:
    return YAML(typ="safe").load((EXAMPLES / "ci" / "artifact.yml").read_text(encoding="utf-8"))
