"""Recipes: every error at once, with its line and the nearest valid word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bakeout.export.recipes.recipe import RecipeError, load_recipe

from tests.recipe_files import write_recipe

GOOD = """\
model: base
data:
  math: {probe: math.jsonl, calibration: math.jsonl}
  code: code.jsonl
interventions:
  - neuron_adjust:
      forget: math
  - key_space_detection:
      forget: [math]
"""


def _written(directory: Path, text: str) -> Path:
    for name in ("math", "code"):
        (directory / f"{name}.jsonl").write_text('{"text": "a"}\n')
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _refusal(directory: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(_written(directory, text))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value.cause


def test_a_newcomers_recipe_has_defaults_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    recipe = load_recipe(_written(tmp_path, GOOD))
    assert recipe.model == str(tmp_path / "base")
    assert recipe.data["math"].probe == tmp_path / "math.jsonl"
    assert recipe.data["code"].file == tmp_path / "code.jsonl"
    adjust, detection = (entry.options for entry in recipe.interventions)
    assert adjust.model_dump() == {
        "forget": ["math"],
        "retain": None,
        "ratio": 0.03,
        "selection": "difference",
        "tokens": "answer",
        "coin": "threshold",
        "experts": True,
        "seed": 0,
    }
    assert detection.model_dump() == {
        "forget": ["math"],
        "retain": None,
        "region": "auto",
        "layers": "auto",
        "keys": "auto",
        "cubes": "auto",
        "alpha": "auto",
        "epsilon": "auto",
        "positions": "query",
        "query_start": "auto",
        "query_end": "auto",
        "refusal": "Your query is not valid.",
        "floor": "auto",
        "augment": "auto",
        "everyday": True,
        "paper": False,
        "seed": 0,
    }
    assert recipe.export.model_dump() == {
        "to": "onnx",
        "dtype": "fp32",
        "exporter": "auto",
        "variant": None,
        "quantize": None,
        "inline": False,
        "early_exit": None,
        "monitor": False,
        "adapter_slots": False,
        "runtimes": (),
    }
    assert adjust.names(recipe.fitted_data()) == {"forget": ["math"], "retain": ["code"]}


def test_what_is_no_directory_is_a_hub_id(tmp_path: Path) -> None:
    assert load_recipe(_written(tmp_path, GOOD.replace("base", "someone/base-1b"))).model == "someone/base-1b"


def test_paths_are_the_recipes_not_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write_recipe(tmp_path / "here", "base")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(path).data["sums"].probe == tmp_path / "here" / "data" / "sums.probe.jsonl"


def test_all_errors_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    cause = _refusal(
        tmp_path,
        """\
modle: base
data:
  math: {probe: math.jsonl, calibraton: math.jsonl}
  code: missing.jsonl
interventions:
  - neuron_adjust:
      forget: math
      ratio: 7
      coin: quantum
  - key_space_detection:
      forget: math
      epsilon: 0
      layers: first
expert:
  dtype: fp32
""",
    )
    for line, text in [
        (1, "unknown key 'modle' (did you mean 'model'?)"),
        (3, "unknown key 'calibraton' (did you mean 'calibration'?)"),
        (8, "ratio"),
        (9, "coin"),
        (12, "epsilon"),
        (13, "layers"),
        (14, "unknown key 'expert' (did you mean 'export'?)"),
        (1, "'model' is missing"),
    ]:
        assert any(
            part.strip().startswith(f"line {line}: ") and text in part for part in cause.split(": ", 1)[1].split(";")
        ), (line, text, cause)


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("forget: math", "forget: maths", 7, "did you mean 'math'?"),
        ("forget: math\n", "forget: math\n      retain: math\n", 8, "'math' is in both `forget` and `retain`"),
        (
            "neuron_adjust:\n      forget: math\n",
            "unlearn:\n      forget: math\n      similar: [code, math]\n",
            8,
            "'math' is in both `forget` and `similar`",
        ),
        ("  code: code.jsonl\n", "", 5, "no data to retain"),
        ("code: code.jsonl", "code: gone.jsonl", 4, "gone.jsonl"),
        ("code: code.jsonl", "code: {test: code.jsonl}", 6, "no data to retain"),
        ("code: code.jsonl", "code: {}", 4, "no file"),
        ("code: code.jsonl", "code: {file: code.jsonl, test: code.jsonl}", 4, "one file for everything"),
        ("  - neuron_adjust:\n      forget: math\n", "  - {}\n", 6, "one method"),
        ("  - neuron_adjust:", "  - key_space_detection:", 5, "2 times Key Space Detection"),
        (
            "forget: [math]",
            "forget: [math]\n  - selective_pruning:\n      forget: math",
            10,
            "Selective Pruning would change the keys that Key Space Detection before it was fitted to",
        ),
        ("  - neuron_adjust:", "  - neuron_adjsut:", 6, "did you mean 'neuron_adjust'?"),
        (
            "forget: math\n",
            "forget: math\n      beta: 0.2\n",
            8,
            "unknown key 'beta' (known are forget, retain, ratio,",
        ),
        ("code: code.jsonl", "code: {train: code.jsonl}", 4, "unknown key 'train' (known are file, probe, selection,"),
        ("forget: math\n", "forget: math\n      ratio: .nan\n", 8, "ratio"),
        ("forget: math\n", "forget: math\n      ratio: -0.1\n", 8, "ratio"),
        ("forget: [math]", "forget: []", 9, "forget"),
        ("forget: [math]", "forget: [math]\n      alpha: -1", 10, "alpha"),
        ("forget: [math]", "forget: [math]\n      alpha: .inf", 10, "alpha"),
        ("forget: [math]", "forget: [math]\n      refusal: ''", 10, "refusal"),
        ("forget: [math]", "forget: [math]\n      cubes: 0", 10, "cubes"),
        ("forget: [math]", "forget: [math]\n      layers: [-1]", 10, "layers"),
    ],
)
def test_each_contradiction_is_found_where_it_stands(tmp_path: Path, old: str, new: str, line: int, text: str) -> None:
    assert old in GOOD
    cause = _refusal(tmp_path, GOOD.replace(old, new, 1))
    assert f"line {line}: " in cause
    assert text in cause


def test_unlearn_needs_no_similar_tasks(tmp_path: Path) -> None:
    text = GOOD.replace("  code: code.jsonl\n", "").partition("  - key_space_detection")[0]
    recipe = load_recipe(_written(tmp_path, text.replace("neuron_adjust", "unlearn")))
    assert recipe.interventions[0].options.names(["math", "code"]) == {"forget": ["math"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a recipe"),
        ("- a\n", "not a recipe"),
        ("model: base\ndata: {math: [\n", "line"),
        ("model: base\nmodel: other\n", "line 2"),
        ("model: !!python/object:os.system x\n", "recipe.yaml"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in _refusal(tmp_path, text)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_an_option_of_two_kinds_is_one_error(tmp_path: Path) -> None:
    cause = _refusal(tmp_path, GOOD + "      layers: first\n")
    assert "has an error" in cause
    assert "'last' or input should be a valid list" in cause


REVEAL = """\
  - reveal_and_release:
      instructions: ["Ask me about code:"]
      directory: revealed
      reveal:
        chat: true
      release:
        rank: 8
"""


def test_sections_of_a_method_are_read_and_their_paths_are_the_recipes(tmp_path: Path) -> None:
    head = GOOD.partition("  - neuron_adjust")[0]
    (entry,) = load_recipe(_written(tmp_path, head + REVEAL)).interventions
    options = entry.options.model_dump()
    assert (entry.method.title, options["directory"]) == ("Reveal-and-Release", tmp_path / "revealed")
    assert (options["reveal"]["chat"], options["reveal"]["samples"], options["release"]["rank"]) == (True, 24, 8)
    cause = _refusal(tmp_path, head + REVEAL.replace("chat:", "chatt:").replace("rank: 8", "rank: 0"))
    assert "line 10: unknown key 'chatt' (did you mean 'chat'?)" in cause
    assert "line 12: interventions.0.reveal_and_release.release.rank: input should be greater than 0" in cause


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        ("nmber", "unknown key 'nmber' (did you mean 'number'?)"),
        ({"number": {"marks": "x"}}, "unknown key 'marks' (did you mean 'mark'?)"),
        ({"regex": {"pattern": "("}}, "not a regular expression"),
        ({"number": {}, "exact": {}}, "it names one grader, not exact and number"),
    ],
    ids=str,
)
def test_what_is_no_grader_is_named_with_its_line(tmp_path: Path, grade: Any, message: str) -> None:
    data = {"sums": {"probe": "data/sums.probe.jsonl", "grade": grade}, "names": "data/names.probe.jsonl"}
    with pytest.raises(RecipeError, match="line 2") as refused:
        load_recipe(write_recipe(tmp_path, tmp_path, data=data))
    assert message in str(refused.value)


def test_paths_of_an_evaluation_are_beside_the_recipe(tmp_path: Path) -> None:
    evaluate = {"answers": "answers.jsonl", "tasks": {"names": "own", "directory": "tasks"}}
    recipe = load_recipe(write_recipe(tmp_path, tmp_path, evaluate=evaluate))
    assert recipe.evaluate.answers == tmp_path / "answers.jsonl"
    assert recipe.evaluate.tasks is not None
    assert recipe.evaluate.tasks.names == ("own",)
    assert recipe.evaluate.tasks.directory == tmp_path / "tasks"
