"""The artifact in Node.js, by the scripts of ``examples/node``: onnxruntime-node, and transformers.js."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.models.skills import checkpoint_directory

from tests.runtimes.javascript import installed
from tests.runtimes.served import LONGEST, Served

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Path:
    return installed("node")


def run(example: Path, *arguments: str | Path) -> str:
    done = subprocess.run(["node", *map(str, arguments)], cwd=example, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(example: Path, script: str, model: Path, texts: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(example, script, "--json", model, *texts).splitlines()]


@pytest.mark.parametrize("script", ["answer.mjs", "transformers.mjs"])
def test_each_prompt(served: Served, example: Path, script: str) -> None:
    heard = answers(example, script, served.public if script == "transformers.mjs" else served.artifact, served.texts)
    assert [one["tokens"] for one in heard] == served.expected
    assert [one["answer"] for one in heard] == [served.text(tokens) for tokens in served.expected]


def test_the_base_model(served: Served, example: Path) -> None:
    heard = answers(example, "answer.mjs", served.base, served.texts)
    assert [one["tokens"] for one in heard] == served.said["base"]


@pytest.mark.slow
def test_half_precision(served: Served, example: Path, tmp_path: Path) -> None:
    half = bake(checkpoint_directory(), served.plan, tmp_path / "half", BakeOptions(dtype="fp16")).directory
    expected = Runner(half, threads=1).generate(served.ids, LONGEST)
    public = bake(
        checkpoint_directory(),
        served.plan,
        tmp_path / "public",
        BakeOptions(dtype="fp16", runtimes=("transformers.js",)),
    ).directory
    for script, model in (("answer.mjs", half), ("transformers.mjs", public)):
        assert [one["tokens"] for one in answers(example, script, model, served.texts)] == expected
    command = [sys.executable, str(EXAMPLES / "python" / "answer.py"), str(half), *served.texts]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [served.text(tokens) for tokens in expected]


def test_answers_are_printed(served: Served, example: Path) -> None:
    printed = run(example, "answer.mjs", served.artifact, *served.texts[:1])
    assert printed == served.text(served.expected[0]) + "\n"
