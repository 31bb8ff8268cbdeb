"""The papers' recipes: as they are generated, valid to the last key, and run on a tiny model with a little data."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from bakeout.export.baking.bake import bake
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.methods.registry import methods
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples, write_jsonl

from tests.recipe_files import write_rows
from tests.tiny_models import tiny_checkpoint

PAPER = Path(__file__).parents[3] / "examples" / "paper"
NAMES = sorted(path.relative_to(PAPER).as_posix() for path in PAPER.rglob("*.yaml"))
PUBLIC = Path(__file__).parents[4] / "shared" / "data"
# One of each method, cheap to fit; the others differ in names and numbers.
QUICK = [
    "effective-skill-unlearning/llama-3-8b/gsm8k-key-space-detection.yaml",
    "effective-skill-unlearning/llama-3-8b/mlqa-hi-neuron-adjust.yaml",
    "effective-skill-unlearning/llama-3-8b/mbpp-selective-pruning.yaml",
]

# What a model with random weights knows nothing of cannot be unlearned: these run on the bundled one and its skills.
NEED_KNOWLEDGE = {"unlearn", "reveal_and_release"}


def _script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(PAPER / f"{name}.py"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, with data that ``prepare.py`` wrote from tiny files in the public data sets' forms."""
    directory = tmp_path_factory.mktemp("paper")
    result = CliRunner().invoke(_script("recipes")["main"], ["--directory", str(directory)], catch_exceptions=False)
    assert result.exit_code == 0
    source = directory / "source"
    count = range(100)
    write_rows(source / "gsm8k_train.jsonl", [{"question": f"{n} and {n}?", "answer": f"{2 * n}"} for n in count])
    write_rows(source / "mbpp.jsonl", [{"text": f"Add {n}.", "code": f"def f(x):\r\n  return x+{n}"} for n in count])
    write_rows(
        source / "mmlu_test.jsonl",
        [{"question": f"Which {n}?", "choices": ["a", "b", "c", "d"], "answer": n % 4} for n in count],
    )
    for language in ("en", "de", "es", "hi", "zh", "vi", "ar"):
        questions = [{"question": f"{language} {n}?", "answers": [{"text": f"{language} {n}"}]} for n in count]
        article = {"paragraphs": [{"context": f"A {language} text.", "qas": questions}]}
        path = source / f"test-context-{language}-question-{language}.json"
        path.write_text(json.dumps({"data": [article]}), encoding="utf-8")
    for name in ("forget05", "retain95"):
        write_rows(source / f"{name}.jsonl", [{"question": f"{name} {n}?", "answer": f"It is {n}."} for n in range(40)])
    for name in ("legalbench", "conll2003_person", "conll2003_others"):
        write_rows(source / f"{name}.jsonl", [{"prompt": f"{name} {n}", "response": f" {n}"} for n in range(40)])
    write_rows(source / "wikitext.jsonl", [{"prompt": f"Text {n}", "response": f" goes on {n}"} for n in range(40)])
    write_rows(
        source / "realtoxicityprompts.jsonl",
        [{"prompt": {"text": f"You {n}"}, "continuation": {"text": f" are {n}"}} for n in range(40)],
    )
    arguments = [str(source), "-o", str(directory / "data")]
    result = CliRunner().invoke(_script("prepare")["main"], arguments, catch_exceptions=False)
    assert "left out" not in result.output
    return directory


def test_the_files_are_what_the_script_writes(directory: Path) -> None:
    written = {path.relative_to(directory).as_posix() for path in directory.rglob("*.yaml")}
    assert written == set(NAMES)
    for name in NAMES:
        assert (PAPER / name).read_text() == (directory / name).read_text()


def test_every_experiment_is_there() -> None:
    used = {method for name in NAMES for entry in YAML().load(PAPER / name)["interventions"] for method in entry}
    assert used == set(methods())
    for model in ("gemma-2b", "llama-2-7b", "llama-3-8b", "llama-3-70b"):
        for skill in ("gsm8k", "mbpp"):
            for method in ("neuron-adjust", "key-space-detection", "selective-pruning"):
                assert f"effective-skill-unlearning/{model}/{skill}-{method}.yaml" in NAMES
    assert len([name for name in NAMES if "mlqa" in name]) == 14
    table = (PAPER / "README.md").read_text()
    assert not [name for name in NAMES if name.split("/")[0] not in table]


@pytest.mark.parametrize("name", NAMES)
def test_every_key_and_path_is_right(directory: Path, name: str) -> None:
    recipe = load_recipe(directory / name)
    written = YAML(typ="safe").load(PAPER / name)
    assert set(recipe.data) == set(written["data"])


def _dry_run(directory: Path, name: str, tmp_path: Path) -> None:
    """Fit and bake on a tiny model, with the options that only cost time turned down."""
    recipe = YAML(typ="safe").load(directory / name)
    ((method, options),) = recipe["interventions"][0].items()
    layers = options.get("layers")
    folder = shutil.copytree(directory / "data", tmp_path / "data").parent
    checkpoint = (
        checkpoint_directory()
        if method in NEED_KNOWLEDGE
        else tiny_checkpoint("llama", tmp_path / "model", layers=max(layers) + 2 if isinstance(layers, list) else 3)
    )
    # A tiny model has few neurons, and learns quickly; a few queries guarantee less.
    options |= {"epsilon": 0.1} if options.get("alpha") == "auto" else {}
    options |= {"ratio": 0.1} if options.get("ratio", 1) < 0.01 else {}
    options |= {"steps": 2} if method in {"unlearn", "learn"} else {}
    options |= {"rank": 2} if "rank" in options else {}
    if method == "reveal_and_release":
        options |= {"instructions": ["Ask me about code:", "Ask me about math:"], "patterns": ["."], "rounds": 1}
    if method in NEED_KNOWLEDGE:
        for skill, data in zip(("math", "code", "facts"), recipe["data"], strict=False):
            for file in (folder / "data").glob(f"{data}.*"):
                write_jsonl(examples(skill, "probing", 60), file)
    path = (
        folder / "recipes" / Path(name).parent.name / "recipe.yaml" if name.count("/") == 2 else folder / "r" / "r.yaml"
    )
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**recipe, "model": str(checkpoint)}), encoding="utf-8")
    baked = bake(str(checkpoint), fit(load_recipe(path)), tmp_path / "artifact")
    assert baked.receipts


@pytest.mark.parametrize("name", QUICK)
def test_it_runs_on_a_tiny_model(directory: Path, name: str, tmp_path: Path) -> None:
    _dry_run(directory, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_each_of_the_others_runs_on_a_tiny_model(directory: Path, name: str, tmp_path: Path) -> None:
    _dry_run(directory, name, tmp_path)


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public data sets are not here (../shared/data)")
def test_the_public_data_are_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(_script("prepare")["main"], [str(PUBLIC), "-o", str(tmp_path)], catch_exceptions=False)
    lines = result.output.splitlines()
    assert "gsm8k: 2000 probe, 1495 calibration, 1495 test" in lines
    assert "mbpp: 360 probe, 120 calibration, 120 test" in lines
    assert "mmlu: left out, there is no mmlu_test.jsonl" in lines
    row = json.loads((tmp_path / "mbpp.probe.jsonl").read_text().splitlines()[0])
    assert row["prompt"].startswith('"""\n')
    assert "\r" not in row["response"]
