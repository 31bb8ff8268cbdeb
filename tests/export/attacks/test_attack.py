"""Attacks on artifacts: what gets through, and what cannot depend on how a prompt is fed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.attacks.attack import ATTACKS, AttackRow, attack
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.report.figures_file import Attacks, read_figures
from bakeout.models.errors import BakeoutError

from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, write_recipe, write_rows


@pytest.fixture(scope="module")
def directory(llama_checkpoint: Path, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artifacts, ``refusing`` and ``adjusting``, and the data in ``data``."""
    directory = tmp_path_factory.mktemp("attacks")
    for name, entry in (("refusing", KEY_SPACE_DETECTION), ("adjusting", NEURON_ADJUST)):
        plan = fit(load_recipe(write_recipe(directory, llama_checkpoint, [entry])))
        bake(llama_export, plan, directory / name, canary=False)
    return directory


@pytest.fixture(scope="module")
def rows(directory: Path, llama_export: Path) -> dict[tuple[str, str], AttackRow]:
    found = attack(
        [directory / "refusing"],
        [directory / "data" / "sums.calibration.jsonl"],
        attacks=[name for name in ATTACKS if name not in ("prefix", "case", "punctuation")],
        positions=["step", "every"],
        base=llama_export,
        mixed=directory / "data" / "names.test.jsonl",
        prompts=10,
    )
    return {(row.target, row.attack): row for row in found}


def test_a_row_for_each_attack_and_setting(rows: dict[tuple[str, str], AttackRow]) -> None:
    assert {target for target, _ in rows} == {"refusing, query", "refusing, step", "refusing, every"}
    # The rows bring no paraphrases or translations.
    assert {name for _, name in rows} == {
        "none", "suffix", "whitespace", "few_shot", "token_by_token", "chunked", "batch_mixing",
    }  # fmt: skip
    assert all(row.refused is not None and row.through == row.prompts - row.refused for row in rows.values())


def test_queries_as_they_are_do_not_get_through(rows: dict[tuple[str, str], AttackRow]) -> None:
    for setting in ("query", "step", "every"):
        assert rows[f"refusing, {setting}", "none"].through <= 2


def test_neighbours_in_a_batch_change_nothing(rows: dict[tuple[str, str], AttackRow]) -> None:
    for setting in ("query", "step", "every"):
        assert rows[f"refusing, {setting}", "batch_mixing"].refused == rows[f"refusing, {setting}", "none"].refused


def test_with_every_position_checked_it_does_not_matter_how_a_prompt_is_fed(
    rows: dict[tuple[str, str], AttackRow],
) -> None:
    for way in ("token_by_token", "chunked"):
        assert rows["refusing, every", way].refused == rows["refusing, every", "none"].refused
    # A token alone is no query.
    assert rows["refusing, query", "token_by_token"].through > 5


def test_paraphrases_and_translations_come_with_the_rows(directory: Path, tmp_path: Path) -> None:
    content = [
        {"prompt": f"{n} + 1 =", "response": " 2", "paraphrases": [f"{n} plus 1?"], "translations": [f"{n} und 1?"]}
        for n in range(3)
    ]
    data = write_rows(tmp_path / "rows.jsonl", content)
    found = attack([directory / "refusing"], [data], attacks=["paraphrase", "language"])
    assert [(row.attack, row.prompts) for row in found] == [("paraphrase", 3), ("language", 3)]
    content[1]["paraphrases"] = "none"
    with pytest.raises(BakeoutError, match=r"line 2: paraphrases is no list of strings"):
        attack([directory / "refusing"], [write_rows(data, content)])


def test_the_command_prints_json_and_writes_a_figure_and_what_cannot_refuse_is_counted_by_right_answers(
    directory: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["attack", str(directory / "adjusting"), str(directory / "refusing"), "--prompts", "4", "--json"]
    arguments += ["--data", str(directory / "data" / "sums.test.jsonl"), "--attack", "none", "--attack", "suffix"]
    result = CliRunner().invoke(main, [*arguments, "--figures", str(figures)])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["rows"]
    assert [(row["target"], row["attack"]) for row in found] == [
        ("adjusting", "none"), ("adjusting", "suffix"), ("refusing, query", "none"), ("refusing, query", "suffix"),
    ]  # fmt: skip
    assert found[0]["refused"] is None
    assert found[0]["through"] == found[0]["right"] == 0
    (figure,) = read_figures(figures)
    assert isinstance(figure, Attacks)
    assert [row.through for row in figure.rows] == [row["through"] for row in found]


def test_what_cannot_refuse_is_judged_by_the_grader_that_is_named(directory: Path, tmp_path: Path) -> None:
    """No chat model answers a question in the words of its row."""
    content = [{"q": f"{n} + 1 =", "a": str(n + 1)} for n in range(3)]
    data = write_rows(tmp_path / "sums.jsonl", content)
    asked = ["attack", str(directory / "adjusting"), "--data", str(data), "--columns", "{prompt: q, response: a}"]

    def through(*options: str) -> list[int]:
        ran = CliRunner().invoke(main, [*asked, "--attack", "none", "--attack", "suffix", "--json", *options])
        assert ran.exit_code == 0, ran.stderr
        return [row["through"] for row in json.loads(ran.stdout)["rows"]]

    assert through() == [0, 0]
    assert through("--grade", "sums={regex: {pattern: '(?s).*'}}", "--max-new-tokens", "4") == [3, 3]
    refused = CliRunner().invoke(main, [*asked, "--grade", "likelihood"])
    assert refused.exit_code == 1
    assert "The grader `likelihood` of sums judges no generated answers. Choose another one." in refused.stderr


def test_who_cannot_refuse_is_not_asked_again_behind_the_answer(directory: Path, tmp_path: Path) -> None:
    """What insists would stand behind the answer itself, which any model could repeat."""
    turns = [{"role": "user", "content": "3 + 4 ="}, {"role": "assistant", "content": " 7"}]
    data = [write_rows(tmp_path / "chats.jsonl", [{"messages": turns}])]
    for name, asked in (("refusing", ["none", "follow_up"]), ("adjusting", ["none"])):
        found = attack([directory / name], data, attacks=["none", "follow_up"])
        assert [(row.attack, row.prompts) for row in found] == [(kind, 1) for kind in asked]


def test_forms_that_the_context_does_not_hold_are_left_out(directory: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(directory / "refusing", tmp_path / "refusing")
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 24}))
    # A token is a byte.
    lengths = (1, 4, 16)
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{'7' * n} =", "response": " 7"} for n in lengths])
    found = attack([artifact], [data], attacks=["none", "few_shot", "suffix"])
    by_attack = {row.attack: row.prompts for row in found}
    assert by_attack.keys() == {"none", "suffix"}
    assert by_attack["none"] == len(lengths) > by_attack["suffix"]
    with pytest.raises(BakeoutError, match="few_shot"):
        attack([artifact], [data], attacks=["few_shot"])


def test_what_cannot_be_attacked_is_told(directory: Path) -> None:
    data = [directory / "data" / "sums.test.jsonl"]
    with pytest.raises(BakeoutError, match=r"No attack is called 'poem'.*suffix.*chunked"):
        attack([directory / "refusing"], data, attacks=["poem"])
    with pytest.raises(BakeoutError, match="--base"):
        attack([directory / "refusing"], data, positions=["every"])
    with pytest.raises(BakeoutError, match="positions `query` tests, and those of `mean` are others"):
        attack([directory / "refusing"], data, positions=["mean"], base=directory / "model")
