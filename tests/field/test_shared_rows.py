"""Rows that stand in two files, or twice in one: noticed by what they say, before any model is loaded."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.artifacts.manifest import read_manifest, write_manifest
from bakeout.export.evaluation.recorded_inputs import tell_fitted_rows
from bakeout.export.fitting.fit import fit
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.data_files import SHARES, by_use
from bakeout.export.recipes.recipe import DataFiles, Recipe, RecipeError, load_recipe
from bakeout.export.recipes.recipe_inputs import open_rows
from bakeout.export.tuning.tune import tune
from bakeout.models.data.row_content import row_contents
from bakeout.models.data.row_source import DataError, source_digest

from tests.recipe_files import KEY_SPACE_DETECTION, rows, write_recipe, write_rows

PRUNING: dict[str, Any] = {"selective_pruning": {"forget": "sums", "retain": "names", "ratio": 0.1}}
QUESTION = "Größe of 7,  please?"
SAME = [
    {"prompt": QUESTION, "response": " another answer"},
    {"prompt": QUESTION.upper().replace("SS", "ß")},
    {"prompt": f"  {QUESTION.replace('  ', chr(160))}\n"},
    {"prompt": unicodedata.normalize("NFD", QUESTION)},
    {"question": QUESTION, "answer": "x"},
    {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "x"}]},
    {"conversations": [{"from": "human", "value": QUESTION}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]},
    {"id": 7, "prompt": QUESTION},
]


def _data(**changed: Sequence[object]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rows of two subjects by use; ``sums_probe`` and the like replace those of one."""
    data: dict[str, dict[str, Any]] = {
        name: {use: rows(name, use) for use in ("probe", "selection", "calibration", "test")}
        for name in ("sums", "names")
    }
    for key, content in changed.items():
        name, _, use = key.partition("_")
        data[name][use] = content
    return data


def _open(intervention: Mapping[str, Any] = KEY_SPACE_DETECTION, **changed: Sequence[object]) -> None:
    """No model is there to be loaded."""
    open_rows(Recipe(model="absent", data=_data(**changed), interventions=[intervention]))


@pytest.mark.parametrize("same", SAME)
@pytest.mark.parametrize("use", ["probe", "selection"])
def test_calibration_rows_that_were_seen_are_refused(use: str, same: dict[str, Any]) -> None:
    changed: dict[str, Any] = {f"sums_{use}": [*rows("sums", use), {"prompt": QUESTION, "response": " 7"}]}
    with pytest.raises(DataError, match=rf"sums \(calibration\), row 21: .*is sums \({use}\), row \d+") as caught:
        _open(**changed, sums_calibration=[*rows("sums", "calibration"), same])
    assert "\n" not in str(caught.value)
    assert "`alpha`" in caught.value.remedy


def test_a_calibration_file_that_is_the_probe_file_is_refused(llama_checkpoint: Path, tmp_path: Path) -> None:
    files = {use: f"data/sums.{use}.jsonl" for use in ("probe", "test")}
    data = {"sums": {**files, "calibration": files["probe"]}, "names": {"probe": "data/names.probe.jsonl"}}
    recipe = write_recipe(tmp_path, tmp_path / "absent", [KEY_SPACE_DETECTION], data=data)
    runs: list[Callable[[], object]] = [lambda: fit(load_recipe(recipe)), lambda: build(recipe, tmp_path / "out")]
    for run in runs:
        # The model is looked for first, and loaded last.
        with pytest.raises(Exception, match="absent"):
            run()
    recipe = write_recipe(tmp_path, llama_checkpoint, [KEY_SPACE_DETECTION], data=data)
    open_ended = write_recipe(
        tmp_path / "open", llama_checkpoint, [KEY_SPACE_DETECTION | {}], data=json.loads(json.dumps(data))
    )
    for run in [*runs, lambda: open_rows(load_recipe(open_ended))]:
        with pytest.raises(DataError, match=r"sums\.probe\.jsonl, line 1: .*\(and 29 more such rows\)"):
            run()


def test_without_a_guarantee_calibration_rows_may_have_been_seen() -> None:
    given = {"key_space_detection": {"forget": "sums", "layers": [2], "alpha": 3.0}}
    _open(given, sums_calibration=rows("sums", "probe"))


def test_a_calibration_row_that_widening_shows_is_refused() -> None:
    probe = [*rows("sums", "probe"), {"prompt": "seven?", "paraphrases": [QUESTION]}]
    calibration = [*rows("sums", "calibration"), {"prompt": QUESTION}]
    _open(sums_probe=probe, sums_calibration=calibration)
    widened = {"key_space_detection": {**KEY_SPACE_DETECTION["key_space_detection"], "augment": ["paraphrase"]}}
    with pytest.raises(DataError, match=r"row 21: .*calibrate"):
        _open(widened, sums_probe=probe, sums_calibration=calibration)


@pytest.mark.parametrize("forgotten", ["probe", "selection", "calibration", "test"])
@pytest.mark.parametrize("retained", ["probe", "calibration", "test"])
def test_rows_to_forget_among_those_to_retain_are_refused(forgotten: str, retained: str) -> None:
    shared = {"prompt": QUESTION, "response": " 7"}
    changed = {
        f"sums_{forgotten}": [*rows("sums", forgotten), shared],
        f"names_{retained}": [*rows("names", retained), shared],
    }
    for intervention in (KEY_SPACE_DETECTION, PRUNING):
        with pytest.raises(DataError, match=rf"names \({retained}\), row \d+: .*retained.*sums \({forgotten}\), row"):
            _open(intervention, **changed)


def test_rows_to_unlearn_that_a_similar_task_has_too_are_refused() -> None:
    """They would protect every direction in which they could be forgotten."""
    _open({"unlearn": {"forget": "sums", "similar": "names"}})
    # Other data are not similar because they are there.
    _open({"unlearn": {"forget": "sums"}}, names_probe=rows("sums", "probe"))
    with pytest.raises(DataError, match=r"names \(probe\), row 1: .*retained.*sums \(probe\), row 1"):
        _open({"unlearn": {"forget": "sums", "similar": "names"}}, names_probe=rows("sums", "probe"))


def test_rows_to_learn_that_a_similar_task_has_too_are_refused(tmp_path: Path) -> None:
    """They would protect every direction in which they could be learnt."""
    _open({"learn": {"learn": "sums", "similar": "names"}})
    # Other data are not similar because they are there.
    _open({"learn": {"learn": "sums"}}, names_probe=rows("sums", "probe"))
    with pytest.raises(DataError, match=r"names \(probe\), row 1: .*retained.*sums \(probe\), row 1, to be learnt"):
        _open({"learn": {"learn": "sums", "similar": "names"}}, names_probe=rows("sums", "probe"))
    recipe = write_recipe(tmp_path, "absent", [{"learn": {"learn": "sums", "similar": ["names", "sums"]}}])
    with pytest.raises(RecipeError, match="'sums' is in both `learn` and `similar`"):
        load_recipe(recipe)


def test_other_answers_to_a_question_may_be_retained_where_answers_are_forgotten() -> None:
    changed = {
        "sums_probe": [*rows("sums", "probe"), {"prompt": QUESTION, "response": " rude"}],
        "names_probe": [*rows("names", "probe"), {"prompt": QUESTION, "response": " polite"}],
    }
    _open(PRUNING, **changed)
    # Key Space Detection sees the question alone.
    with pytest.raises(DataError, match="retained"):
        _open(KEY_SPACE_DETECTION, **changed)


@pytest.mark.parametrize(
    ("use", "other"),
    [("test", "probe"), ("test", "calibration"), ("selection", "probe"), ("calibration", "probe")],
)
def test_figures_on_seen_rows_are_told(use: str, other: str, caplog: pytest.LogCaptureFixture) -> None:
    seen = rows("names", other)[:2]
    with caplog.at_level(logging.WARNING):
        _open(KEY_SPACE_DETECTION, **{f"names_{use}": [*rows("names", use), *seen]})
    total = len(rows("names", use)) + 2
    (told,) = caplog.messages
    assert told.startswith(f"names: 2 of {total} {use} rows are {other} rows too")
    assert told.endswith(f"; names ({use}), row {total - 1} is names ({other}), row 1")


def test_an_artifacts_card_and_manifest_tell_seen_test_rows(llama_checkpoint: Path, tmp_path: Path) -> None:
    seen = [*rows("names", "test"), rows("names", "probe")[3]]
    recipe = write_recipe(tmp_path, llama_checkpoint, [PRUNING], data=_data(names_test=seen))
    artifact = build(recipe, tmp_path / "artifact").directory
    assert "names: 1 of 7 test rows are probe rows too" in (artifact / "README.md").read_text(encoding="utf-8")
    (entry,) = read_manifest(artifact)["seen_rows"]
    assert entry == {"name": "names", "use": "test", "other": "probe", "count": 1, "total": 7}


def test_separate_rows_are_not_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _open()
        _open(PRUNING)
    assert not caplog.messages


def test_equal_rows_of_one_file_fall_to_one_use(tmp_path: Path) -> None:
    plain = [{"prompt": f"{n} + {n} =", "response": f" {2 * n}"} for n in range(200)]
    doubled = [{**row, "id": n, "prompt": f" {row['prompt']} "} for n, row in enumerate(plain)]
    alone = by_use({"sums": DataFiles(file=write_rows(tmp_path / "plain.jsonl", plain))})["sums"]
    both = by_use({"sums": DataFiles(file=write_rows(tmp_path / "both.jsonl", [*plain, *doubled]))})["sums"]
    for use in SHARES:
        questions = [row.question for row in row_contents(alone[use])]
        assert [row.question for row in row_contents(both[use])] == questions * 2
    recipe = Recipe(model="absent", data={"sums": [*plain, *doubled]}, interventions=[KEY_SPACE_DETECTION])
    open_rows(recipe)


def test_tuning_on_rows_that_contradict_is_refused(llama_checkpoint: Path, tmp_path: Path) -> None:
    data = _data(names_selection=rows("sums", "probe"))
    adjusting = [{"neuron_adjust": {"forget": "sums", "ratio": "auto"}}]
    with pytest.raises(DataError, match="retained"):
        tune(write_recipe(tmp_path, llama_checkpoint, adjusting, data=data), tmp_path / "tuned.yaml", trials=1)


@pytest.mark.parametrize("odd", [{"prompt": 7}, {"messages": "x"}, {"prompt": ""}, {"text": ["a"]}, {}])
def test_rows_that_say_nothing_are_told_where_they_are_read(odd: dict[str, Any]) -> None:
    _open(sums_probe=[*rows("sums", "probe"), odd], names_probe=[*rows("names", "probe"), odd | {"id": 1}])


def test_measuring_on_the_rows_of_the_fit_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe = write_rows(tmp_path / "probe.jsonl", rows("sums", "probe"))
    fresh = write_rows(tmp_path / "fresh.jsonl", rows("sums", "test"))
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    data = {"sums": {"probe": source_digest(probe), "test": source_digest(fresh)}}
    write_manifest(artifact, {"data": data, "receipts": []})
    with caplog.at_level(logging.WARNING):
        tell_fitted_rows([artifact], {"old": probe, "new": fresh})
    (told,) = caplog.messages
    assert told.startswith(f"old holds the rows that {artifact} was fitted with (sums, probe)")


def test_rows_to_vary_are_read_before_the_model(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Widening needs rows that ask something: told before weights, which are damaged here, are read."""
    model = tmp_path / "model"
    model.mkdir()
    for path in llama_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (model / path.name).write_bytes(path.read_bytes())
    (model / "model.safetensors").write_bytes(b"damaged")
    widened = {"key_space_detection": {**KEY_SPACE_DETECTION["key_space_detection"], "augment": ["few_shot"]}}
    unanswered = [{"prompt": row["prompt"]} for row in rows("sums", "probe")]
    recipe = write_recipe(tmp_path, model, [widened], data=_data(sums_probe=unanswered))
    with pytest.raises(Exception, match="few_shot needs two rows with a response, which sums lacks"):
        fit(load_recipe(recipe))
    recipe = write_recipe(tmp_path, model, [widened], data=_data(sums_probe=[*rows("sums", "probe"), {"text": "x"}]))
    with pytest.raises(DataError, match="row 31: the row asks nothing"):
        fit(load_recipe(recipe))
