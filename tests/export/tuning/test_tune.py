"""Tuning: every choice filled in, comments kept, all trials in tables, and a build that never searches."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.report.figures_file import Depth, Frontier, Inside, read_figures
from bakeout.export.tuning.trials import KEPT
from bakeout.export.tuning.tune import JOURNAL, Tuned, tune
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.forms.kinds import MIXTURE, PLAIN
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.served import EVERYDAY_QUESTIONS
from bakeout.models.plan import KeySpaceDetection, NeuronAdjust

from tests.recipe_files import rows, write_recipe, write_rows
from tests.tiny_models import END_OF_TEXT_ID, PADDING_ID, byte_tokenizer

ADJUST = {"neuron_adjust": {"forget": "sums", "ratio": "auto", "coin": "threshold"}}
DETECT = {"key_space_detection": {"forget": "sums", "layers": "auto", "cubes": "auto", "floor": "auto", "epsilon": 0.1}}


def _answered(directory: Path, checkpoint: Path) -> None:
    """Data whose responses are the likeliest letters that the model could say."""
    tokenizer = byte_tokenizer()
    generate: Any = load_model(checkpoint).generate
    strange = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).strip().isascii()]
    for subject, use in itertools.product(("sums", "names"), ("probe", "selection")):
        content = rows(subject, use)
        for row in content:
            ids = tokenizer.encode(row["prompt"], return_tensors="pt")
            options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": PADDING_ID}
            said = generate(ids, suppress_tokens=[*strange, END_OF_TEXT_ID], **options)
            row["response"] = tokenizer.decode(said[0, ids.shape[1] :])
        write_rows(directory / "data" / f"{subject}.{use}.jsonl", content)


@pytest.fixture(scope="module")
def tuned(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned]:
    directory = tmp_path_factory.mktemp("tuning")
    recipe = write_recipe(directory, llama_checkpoint, [ADJUST, DETECT])
    recipe.write_text(f"# What a recipe says stays.\n{recipe.read_text()}")
    _answered(directory, llama_checkpoint)
    (directory / "tuned").mkdir()
    output = directory / "tuned" / "recipe.yaml"
    return recipe, tune(recipe, output, trials=4, prompts=20, figures=directory / "figures.json")


def test_a_tuned_recipe_has_every_choice_filled_in_and_builds_without_a_search(tuned: tuple[Path, Tuned]) -> None:
    _, done = tuned
    assert done.recipe.read_text().startswith("# What a recipe says stays.")
    recipe = load_recipe(done.recipe)
    adjust, detection = (entry.options.model_dump() for entry in recipe.interventions)
    assert "auto" not in (adjust["ratio"], adjust["selection"], adjust["tokens"])
    assert adjust["coin"] == "threshold"
    assert not {"layers", "cubes", "floor", "epsilon"} & {key for key, value in detection.items() if value == "auto"}
    fitted = fit(recipe).interventions
    assert isinstance(fitted[0], NeuronAdjust)
    assert isinstance(fitted[1], KeySpaceDetection)
    assert list(fitted[1].layers) == detection["layers"]
    assert fitted[1].report.choice is None


def test_all_trials_are_kept_and_the_rule_chose_among_them(tuned: tuple[Path, Tuned]) -> None:
    _, done = tuned
    kept = json.loads((done.directory / "trials.json").read_text())["0"]
    assert kept["method"] == "neuron_adjust"
    assert len(kept["trials"]) == 4
    allowed = [trial for trial in kept["trials"] if min(trial["retain"].values()) >= KEPT]
    least = min(allowed or kept["trials"], key=lambda trial: max(trial["forget"].values()))
    if allowed:
        assert least["forget"] == next(one for one in allowed if one["settings"] == kept["chosen"])["forget"]
    with (done.directory / "trials-0-neuron_adjust.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in table] == [trial["settings"]["ratio"] for trial in kept["trials"]]
    assert {"sums", "names", "divergence"} <= table[0].keys()


def test_a_search_that_is_done_is_not_done_again(
    tuned: tuple[Path, Tuned], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, done = tuned
    caplog.set_level(logging.INFO)
    again = tune(recipe, tmp_path / "again.yaml", trials=4, prompts=20, directory=done.directory)
    assert again.filled == done.filled
    said = caplog.text
    assert "going on after 4 trials" in said
    assert "before: sums " in said
    assert "trial 5" not in said


def test_the_figures_of_the_choices(tuned: tuple[Path, Tuned]) -> None:
    recipe, done = tuned
    figures = read_figures(recipe.parent / "figures.json")
    kinds = [type(figure) for figure in figures]
    assert set(kinds) == {Frontier, Inside, Depth}
    frontier = next(figure for figure in figures if isinstance(figure, Frontier))
    assert frontier.chosen == done.filled[0]["ratio"]
    assert frontier.name == "β"
    inside = next(figure for figure in figures if isinstance(figure, Inside))
    assert inside.chosen is not None
    assert inside.shares["sums"][-1] == 1
    at_alpha = min(range(len(inside.alpha)), key=lambda index: abs(inside.alpha[index] - (inside.chosen or 0)))
    assert inside.shares["sums"][at_alpha] > inside.shares["names"][at_alpha]
    depth = next(figure for figure in figures if isinstance(figure, Depth))
    assert depth.layers == [0, 1, 2, 3]
    assert [panel.label.split(":")[0] for panel in depth.panels] == [
        "volume",
        "separation",
        "queries inside, at 99.5 % coverage",
    ]


def test_everyday_questions_stand_in_the_figures_of_one_data_set_alone(llama_checkpoint: Path, tmp_path: Path) -> None:
    """They are what the choice was made on, where a recipe has nothing else."""
    uses = ("probe", "selection", "calibration")
    for use in uses:
        chats = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in rows("sums", use)]
        write_rows(tmp_path / "data" / f"chat.{use}.jsonl", chats)
    data = {"sums": {use: f"data/chat.{use}.jsonl" for use in uses}}
    plain = {"without": sorted(MIXTURE.keys() - {PLAIN})}
    options = {"forget": "sums", "region": "cube", "cubes": 1, "floor": 0.1, "epsilon": 0.1, "augment": plain}
    recipe = write_recipe(tmp_path, llama_checkpoint, [{"key_space_detection": options}], data=data)
    done = tune(recipe, tmp_path / "tuned.yaml", figures=tmp_path / "figures.json")
    assert done.recipe.is_file()
    inside, depth = read_figures(tmp_path / "figures.json")
    assert isinstance(inside, Inside) and isinstance(depth, Depth)
    assert inside.shares.keys() == {"sums", EVERYDAY_QUESTIONS}
    separation = next(panel for panel in depth.panels if panel.label.startswith("separation"))
    assert separation.series.keys() == {EVERYDAY_QUESTIONS}


@pytest.mark.parametrize(
    "entry",
    [
        ADJUST,
        {"lunar": {"forget": "sums", "reference": "names", "retain": "names", "coefficient": "auto"}},
        {"unlearn": {"forget": "sums", "scale": "auto"}},
    ],
)
def test_a_build_never_searches(llama_checkpoint: Path, tmp_path: Path, entry: dict[str, Any]) -> None:
    if "lunar" in entry:
        entry = {"lunar": {**entry["lunar"], "retain": ["others"]}}
    sections = {"data": {name: {"probe": f"data/{name}.probe.jsonl"} for name in ("sums", "names")}}
    sections["data"]["others"] = sections["data"]["names"]
    path = write_recipe(tmp_path, llama_checkpoint, [entry], **sections)
    result = CliRunner().invoke(main, ["build", str(path), "-o", str(tmp_path / "artifact")])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "takes a search" in result.stderr
    assert "bakeout tune RECIPE -o TUNED.yaml" in result.stderr
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("method", "strength", "options"),
    [
        ("lunar", "coefficient", {"reference": "names", "retain": "names", "layers": [1]}),
        ("unlearn", "scale", {"steps": 2}),
        ("selective_pruning", "ratio", {"tokens": "answer"}),
    ],
)
def test_the_strengths_of_weight_methods_are_searched_too(
    llama_checkpoint: Path, tmp_path: Path, method: str, strength: str, options: dict[str, Any]
) -> None:
    data = {
        name: {use: f"data/{name.rstrip('2')}.{use}.jsonl" for use in ("probe", "selection")}
        for name in ("sums", "names", "names2")
    }
    options = {"forget": "sums", strength: "auto", **options}
    if "retain" in options:
        options["retain"] = "names2"
    recipe = write_recipe(tmp_path, llama_checkpoint, [{method: options}], data=data)
    _answered(tmp_path, llama_checkpoint)
    done = tune(recipe, tmp_path / "tuned.yaml", trials=3, prompts=8)
    assert [trial.settings[strength] for trial in done.trials[0]] != []
    # More strength, more change.
    by_strength = sorted(done.trials[0], key=lambda trial: trial.settings[strength])
    assert by_strength[0].measured.divergence < by_strength[-1].measured.divergence
    written = load_recipe(done.recipe).interventions[0].options
    assert getattr(written, strength) == done.filled[0][strength]


def test_other_rows_or_types_are_another_search(llama_checkpoint: Path, tmp_path: Path) -> None:
    """A column that is corrected, or another type, must not go on with what was measured before."""
    for subject, use in itertools.product(("sums", "names"), ("probe", "selection")):
        content = [{**row, "other": " other"} for row in rows(subject, use)]
        write_rows(tmp_path / "data" / f"{subject}.{use}.jsonl", content)
    files = {name: {use: f"data/{name}.{use}.jsonl" for use in ("probe", "selection")} for name in ("sums", "names")}
    columns = {"columns": {"prompt": "prompt", "response": "other"}}
    searches: list[dict[str, Any]] = [
        {"data": files},
        {"data": {name: {**uses, **columns} for name, uses in files.items()}},
        {"data": files, "dtype": "bfloat16"},
    ]
    for number, sections in enumerate(searches, start=1):
        recipe = write_recipe(tmp_path / "recipes", llama_checkpoint, [ADJUST], **sections)
        recipe = recipe.rename(tmp_path / f"{number}.yaml")
        tune(recipe, tmp_path / f"{number}.tuned.yaml", trials=1, prompts=4, directory=tmp_path / "kept")
        journal = (tmp_path / "kept" / JOURNAL).read_text(encoding="utf-8")
        assert len(set(re.findall(r"0-[0-9a-f]{16}", journal))) == number


def test_another_choice_before_it_is_another_search(llama_checkpoint: Path, tmp_path: Path) -> None:
    """More trials may choose otherwise: what was measured behind the earlier choice is of another model."""
    recipe = write_recipe(tmp_path, llama_checkpoint, [ADJUST, ADJUST])
    _answered(tmp_path, llama_checkpoint)
    chosen = [
        tune(recipe, tmp_path / f"{trials}.yaml", trials=trials, prompts=8, directory=tmp_path / "kept").filled[0]
        for trials in (1, 4)
    ]
    assert chosen[0] != chosen[1]
    journal = (tmp_path / "kept" / JOURNAL).read_text(encoding="utf-8")
    assert [len(set(re.findall(rf"{index}-[0-9a-f]{{16}}", journal))) for index in (0, 1)] == [1, 2]


def test_a_search_needs_something_to_keep(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Told before the model is loaded, and what an earlier entry forgets is nothing to keep."""
    alone = {"sums": {use: f"data/sums.{use}.jsonl" for use in ("probe", "selection")}}
    unlearn = {"unlearn": {"forget": "sums", "scale": "auto", "steps": 1}}
    recipe = write_recipe(tmp_path, tmp_path / "absent", [unlearn], data=alone)
    with pytest.raises(BakeoutError, match="UNLEARN: nothing is retained"):
        tune(recipe, tmp_path / "tuned.yaml")
    both = {name: {use: f"data/{name}.{use}.jsonl" for use in ("probe", "selection")} for name in ("sums", "names")}
    earlier = {"unlearn": {"forget": "names", "steps": 1}}
    recipe = write_recipe(tmp_path, tmp_path / "absent", [earlier, unlearn], data=both)
    with pytest.raises(BakeoutError, match="UNLEARN: nothing is retained"):
        tune(recipe, tmp_path / "tuned.yaml")


def test_what_cannot_be_tuned_is_told(llama_checkpoint: Path, tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, llama_checkpoint, [{"neuron_adjust": {"forget": "sums"}}])
    with pytest.raises(BakeoutError, match="nothing is left `auto`"):
        tune(plain, tmp_path / "tuned.yaml")
    (tmp_path / "there.yaml").touch()
    with pytest.raises(BakeoutError, match="exists already"):
        tune(plain, tmp_path / "there.yaml")
    data = {name: {"probe": f"data/{name}.probe.jsonl"} for name in ("sums", "names")}
    bare = write_recipe(tmp_path, llama_checkpoint, [ADJUST], data=data)
    with pytest.raises(BakeoutError, match="sums has nothing to measure candidates on"):
        tune(bare, tmp_path / "tuned.yaml", trials=2)
