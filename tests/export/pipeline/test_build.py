"""Building: a recipe goes in, a measured and verified artifact comes out, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.artifacts.manifest import file_digests, read_manifest
from bakeout.export.evaluation.evaluate import evaluate, stored_base_rows
from bakeout.export.evaluation.graders.registry import grader_of
from bakeout.export.evaluation.rows import BASE
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.verification.verify import Check, verify
from bakeout.models.checkpoint.placement import REFERENCE, Placement
from bakeout.models.errors import BakeoutError
from bakeout.models.progress import Item

from tests.directory_tree import tree
from tests.recipe_files import KEY_SPACE_DETECTION, write_recipe
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def built(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("build")
    result = build(write_recipe(directory, llama_checkpoint), directory / "artifact")
    assert result.directory == directory / "artifact"
    assert {(row.model == BASE, row.data) for row in result.rows} == {
        (base, data) for base in (True, False) for data in ("sums", "names")
    }
    return result.directory


def test_the_artifact_is_complete(built: Path, llama_checkpoint: Path) -> None:
    names = set(tree(built))
    assert {
        "README.md",
        "bakeout.json",
        "chat_template.jinja",
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx.data",
        "plan.safetensors",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert read_manifest(built)["files"] == file_digests(built, {})
    assert (built / "recipe.yaml").read_bytes() == (built.parent / "recipe.yaml").read_bytes()
    assert "llama without sums" in (built / "README.md").read_text()


def test_nothing_else_is_left(built: Path) -> None:
    assert {path.name for path in built.parent.iterdir()} == {"artifact", "data", "recipe.yaml"}


def test_it_verifies_with_its_base_model(built: Path, llama_checkpoint: Path) -> None:
    checks = verify(built, base=llama_checkpoint)
    assert all(check.ok for check in checks), checks
    assert {check.name for check in checks} >= {"files", "graph", "canary", "parity"}


def test_a_model_that_is_streamed_is_verified_so(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placements: list[Placement] = []

    def watched(directory: Path, placement: Placement = REFERENCE, **options: Any) -> list[Check]:
        placements.append(placement)
        return verify(directory, placement=placement, **options)

    monkeypatch.setattr("bakeout.export.pipeline.build.verify", watched)
    build(write_recipe(tmp_path, llama_checkpoint, device_map={"": "cpu"}, dtype="bfloat16"), tmp_path / "artifact")
    assert placements == [Placement("auto", "float32", {"": "cpu"})]


def test_the_base_models_figures_travel_with_it(built: Path) -> None:
    data = {"sums": built.parent / "data" / "sums.test.jsonl", "names": built.parent / "data" / "names.test.jsonl"}
    rows = stored_base_rows(built, data)
    assert [(row.model, row.data, row.prompts) for row in rows] == [(BASE, "sums", 6), (BASE, "names", 6)]


def test_an_exporter_that_cannot_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny_checkpoint("ernie4_5", tmp_path / "model", layers=1), export={"exporter": "optimum"}
    )
    steps = []

    def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        steps.append(description)
        return iterable

    with pytest.raises(BakeoutError, match="optimum cannot export ernie4_5"):
        build(recipe, tmp_path / "artifact", track=track)
    assert not steps


def test_a_build_that_fails_leaves_nothing(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, [KEY_SPACE_DETECTION])
    (tmp_path / "data" / "names.test.jsonl").write_text(json.dumps({"text": "no question"}) + "\n")
    with pytest.raises(BakeoutError, match=r"names\.test\.jsonl"):
        build(recipe, tmp_path / "out" / "artifact")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "recipe.yaml"}


def test_one_file_for_everything_is_enough(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama_checkpoint, [])
    for subject in ("sums", "names"):
        parts = [(tmp_path / "data" / f"{subject}.{use}.jsonl").read_text() for use in ("probe", "calibration", "test")]
        (tmp_path / f"{subject}.jsonl").write_text("".join(parts))
    detection = {"key_space_detection": {"forget": "sums", "epsilon": 0.25}}
    recipe = write_recipe(tmp_path, llama_checkpoint, [detection], data={"sums": "sums.jsonl", "names": "names.jsonl"})
    written = recipe.read_bytes()

    def edited(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        recipe.write_text("# The next recipe.")
        return iterable

    result = build(recipe, tmp_path / "artifact", track=edited)
    assert sum(row.prompts for row in result.rows if row.model == BASE) > 10
    # What was built by, not what stands there at the end.
    assert (tmp_path / "artifact" / "recipe.yaml").read_bytes() == written


def test_a_recipe_says_how_answers_are_judged(llama_checkpoint: Path, tmp_path: Path) -> None:
    data = {
        subject: {use: f"data/{subject}.{use}.jsonl" for use in ("probe", "selection", "calibration", "test")}
        for subject in ("sums", "names")
    }
    graded = {"sums": {**data["sums"], "grade": "number"}, "names": {**data["names"], "grade": {"likelihood": {}}}}
    sections = {"data": graded, "evaluate": {"rows": 4, "max_new_tokens": 6, "answers": "answers.jsonl"}}
    recipe = write_recipe(tmp_path, llama_checkpoint, [KEY_SPACE_DETECTION], **sections)
    result = build(recipe, tmp_path / "artifact")
    rows = {(row.model == BASE, row.data): row for row in result.rows}
    assert all((row.prompts, row.available) == (4, 6) for row in rows.values())
    assert {row.grade for row in result.rows} == {"number", "likelihood"}
    assert rows[False, "names"].score is not None
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 8
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert "| sums | 4 of 6 | number |" in card
    assert "log p per token" in card
    tests = {subject: tmp_path / "data" / f"{subject}.test.jsonl" for subject in ("sums", "names")}
    # Only figures that were judged alike stand beside an artifact's.
    assert stored_base_rows(tmp_path / "artifact", tests) == []
    graders = {name: grader_of(one, name) for name, one in {"sums": "number", "names": "likelihood"}.items()}
    stored = stored_base_rows(tmp_path / "artifact", tests, graders, EvaluateOptions(max_new_tokens=6))
    assert [(row.data, row.prompts, row.accuracy) for row in stored] == [
        (name, 4, rows[True, name].accuracy) for name in ("sums", "names")
    ]


def test_a_recipe_names_the_runtime_that_answers(llama_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    options = {"rows": 4, "max_new_tokens": 6, "runtime": "genai"}
    artifact = tmp_path / "artifact"
    result = build(write_recipe(tmp_path, llama_checkpoint, [KEY_SPACE_DETECTION], evaluate=options), artifact)
    tests = {subject: tmp_path / "data" / f"{subject}.test.jsonl" for subject in ("sums", "names")}
    own = evaluate([artifact], tests, options=EvaluateOptions(rows=4, max_new_tokens=6))
    shares = {(row.data, row.accuracy, row.refusals, row.cut_off) for row in result.rows if row.model != BASE}
    assert {(row.data, row.accuracy, row.refusals, row.cut_off) for row in own.rows} == shares
    # What our own loop answers does not stand beside what genai does.
    assert BASE not in {row.model for row in own.rows}
    stored = stored_base_rows(artifact, tests, options=EvaluateOptions.model_validate(options))
    assert [row.data for row in stored] == ["sums", "names"]


def test_rows_that_a_grader_cannot_judge_are_named_before_anything_is_fitted(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    names = {"probe": "data/names.probe.jsonl", "test": "data/names.test.jsonl", "grade": "python"}
    data = {"sums": "data/sums.probe.jsonl", "names": names}
    recipe = write_recipe(tmp_path, llama_checkpoint, data=data)

    def tracked(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
        raise AssertionError(description)

    with pytest.raises(BakeoutError, match=r"names\.test\.jsonl, line 1: the row has no tests"):
        build(recipe, tmp_path / "artifact", track=tracked)


def test_what_the_runtime_cannot_measure_is_named_before_anything_is_fitted(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    tasks = {"runtime": "genai", "tasks": {"names": ["mmlu"]}}
    recipe = write_recipe(tmp_path, llama_checkpoint, evaluate=tasks)

    def tracked(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
        raise AssertionError(description)

    with pytest.raises(BakeoutError, match="shows no logits of a text that it is given, and a task reads them"):
        build(recipe, tmp_path / "artifact", track=tracked)
