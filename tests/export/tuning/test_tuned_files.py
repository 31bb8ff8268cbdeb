"""What a search ends with is two files, and a process may be killed between them: the next run completes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.tuning.tuned_files import filled_recipe, require_new_outputs, write_outputs
from bakeout.models.errors import BakeoutError

CONTENTS = {"recipe": "model: x\n", "figures": "[]\n"}


def test_every_path_of_a_recipe_is_moved(tmp_path: Path) -> None:
    source = tmp_path / "recipes" / "recipe.yaml"
    source.parent.mkdir()
    for name in ("model.gguf", "sums.jsonl", "names.jsonl"):
        (source.parent / name).touch()
    (source.parent / "tasks").mkdir()
    source.write_text(
        "model: model.gguf\ndata: {sums: {file: sums.jsonl, grade: number}, names: names.jsonl}\n"
        "interventions: [neuron_adjust: {forget: sums, ratio: 0.1}]\n"
        "evaluate: {answers: answers.jsonl, tasks: {names: [own], directory: tasks}}\n"
    )
    output = tmp_path / "tuned" / "tuned.yaml"
    output.parent.mkdir()
    output.write_text(filled_recipe(source.read_bytes(), source, output, load_recipe(source), {}))
    one, other = load_recipe(source), load_recipe(output)
    assert Path(one.model).name == "model.gguf"
    assert (one.model, one.data, one.evaluate) == (other.model, other.data, other.evaluate)


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Path]:
    """Both files, as they are written."""
    paths = {"recipe": tmp_path / "tuned.yaml", "figures": tmp_path / "figures.json"}
    require_new_outputs(tmp_path, paths)
    write_outputs(tmp_path, paths, CONTENTS)
    return paths


@pytest.mark.parametrize("missing", CONTENTS)
def test_the_one_that_a_killed_run_did_not_write_is_written(
    missing: str, outputs: dict[str, Path], tmp_path: Path
) -> None:
    outputs[missing].unlink()
    require_new_outputs(tmp_path, outputs)
    write_outputs(tmp_path, outputs, CONTENTS)
    assert {name: path.read_text() for name, path in outputs.items()} == CONTENTS


def test_files_that_are_no_part_of_it_are_in_the_way(outputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="exists already"):
        require_new_outputs(tmp_path, outputs)
    outputs["figures"].unlink()
    # A run with other settings ends with another recipe.
    with pytest.raises(BakeoutError, match=r"tuned\.yaml exists already"):
        write_outputs(tmp_path, outputs, {**CONTENTS, "recipe": "model: y\n"})
    assert not outputs["figures"].exists()
    outputs["recipe"].write_text("model: of the user\n")
    with pytest.raises(BakeoutError, match=r"tuned\.yaml exists already"):
        require_new_outputs(tmp_path, outputs)
    outputs["recipe"].unlink()
    outputs["recipe"].mkdir()
    with pytest.raises(BakeoutError, match=r"tuned\.yaml exists already"):
        require_new_outputs(tmp_path, outputs)
