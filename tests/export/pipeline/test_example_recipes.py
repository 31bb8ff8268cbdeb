"""The recipes in ``examples/recipes`` are ones that `bakeout build` follows."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from bakeout.export.evaluation.rows import BASE
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.data_files import by_use
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.registry import methods

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes with a little data beside them, as ``write_data.py`` writes it."""
    directory = tmp_path_factory.mktemp("recipes")
    for name in NAMES:
        shutil.copyfile(RECIPES / name, directory / name)
    write_data: Any = runpy.run_path(str(RECIPES / "write_data.py"))["main"]
    arguments = ["--directory", str(directory), "--probe", "60", "--test", "10"]
    result = CliRunner().invoke(write_data, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return directory


def test_there_is_one_for_every_method_that_changes_weights() -> None:
    written = {method for name in NAMES for entry in _interventions(name) for method in entry}
    assert written == methods().keys() - {"neuron_adjust", "key_space_detection"}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_its_data_can_be_read(directory: Path, name: str) -> None:
    recipe = load_recipe(directory / name)
    tokenizer = load_tokenizer(Path(recipe.model))
    files = by_use(recipe.data)
    for entry in recipe.interventions:
        for role, names in entry.options.names(recipe.fitted_data()).items():
            assert all(read_records(files[one]["probe"], tokenizer) for one in names), role
    assert all(data.test is not None for data in recipe.data.values())


def test_the_new_people_are_nobodys_namesakes(directory: Path) -> None:
    lessons = (directory / "data" / "new_people.probe.jsonl").read_text()
    asked = (directory / "data" / "new_people.test.jsonl").read_text()
    assert "I do not know." in lessons and "I do not know." not in asked
    assert not set(asked.splitlines()) & set(lessons.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selective-pruning.yaml", "unlearn.yaml"])
def test_it_builds_an_artifact(directory: Path, name: str, tmp_path: Path) -> None:
    built = build(directory / name, tmp_path / "artifact")
    assert built.receipts
    assert {row.model == BASE for row in built.rows} == {True, False}
    assert (built.directory / "model.safetensors").is_file()


def _interventions(name: str) -> list[dict[str, Any]]:
    content: Any = YAML(typ="safe").load((RECIPES / name).read_text())
    interventions: list[dict[str, Any]] = content["interventions"]
    return interventions
