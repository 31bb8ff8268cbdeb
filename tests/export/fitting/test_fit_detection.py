"""Key Space Detection from a recipe: what is chosen, what alpha promises, and the paper's own settings."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.forms.kinds import MIXTURE
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods import probed
from bakeout.models.methods.key_space_detection import METHOD
from bakeout.models.methods.key_space_detection.choosing.candidate import Choice
from bakeout.models.methods.key_space_detection.choosing.structure import choose_structure
from bakeout.models.methods.key_space_detection.choosing.unseen_forms import Forms
from bakeout.models.methods.key_space_detection.detection import conformal_quantile, least_queries
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.served import EVERYDAY_QUESTIONS
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.plan.kinds.detection_report import KeySpaceDetectionReport
from bakeout.models.plan.plan_file import save_plan
from bakeout.models.reference.hooks import Hooks

from tests.fitted_regions import cubes_of
from tests.recipe_files import rows, write_recipe, write_rows

CHOSEN = {"region": "cube"}


def _fitted(directory: Path, checkpoint: Path, options: dict[str, Any], **sections: Any) -> KeySpaceDetection:
    entry = {"key_space_detection": {"forget": "sums", "epsilon": 0.1, **options}}
    (detection,) = fit(load_recipe(write_recipe(directory, checkpoint, [entry], **sections))).interventions
    assert isinstance(detection, KeySpaceDetection)
    return detection


def test_layers_cubes_and_floor_are_chosen_and_the_choice_is_told(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, llama_checkpoint, [{"key_space_detection": {"forget": "sums", "epsilon": 0.1, **CHOSEN}}]
    )
    plan = fit(load_recipe(recipe))
    (detection,) = plan.interventions
    assert isinstance(detection, KeySpaceDetection)
    choice = detection.report.as_json()["choice"]
    assert detection.layers == tuple(choice["chosen"]["layers"])
    assert {tuple(one["layers"]) for one in choice["candidates"]} >= {(0,), (1,), (2,), (3,), (0, 1)}
    assert {one["cubes"] for one in choice["candidates"]} == {1}
    assert {one["floor"] for one in choice["candidates"]} == {0.1, 0.3, 1.0}
    assert choice["chosen"]["error"] <= min(one["error"] for one in choice["candidates"]) + 5
    assert detection.report.as_json()["floor"] == choice["chosen"]["floor"]
    # The guarantee and what it rests on, and the bound on false refusals.
    skill = detection.report.as_json()["skills"]["sums"]
    assert skill["guaranteed_coverage"] == 0.9
    assert skill["calibration_queries"] == 20
    assert skill["calibration_inside"] >= 0.9
    low, high = detection.report.as_json()["retain"]["names"]["interval"]
    assert low <= detection.report.as_json()["retain"]["names"]["rate"] <= high < 1
    save_plan(plan, tmp_path / "plan.safetensors")
    told = "\n".join(lines(inspect(tmp_path / "plan.safetensors")))
    layers = f"layer{'s' if len(detection.layers) > 1 else ''} {', '.join(map(str, detection.layers))}"
    assert f"chosen      among {len(choice['candidates'])} structures cube, 1 in {layers}: " in told
    assert "of 20 calibration queries inside, at least 90 % of fresh ones" in told
    assert "candidates" not in told


def test_alpha_stands_on_queries_that_nothing_else_has_seen(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Other calibration queries change alpha, and neither the structure nor the cubes."""
    before = _fitted(tmp_path / "before", llama_checkpoint, CHOSEN)
    directory = tmp_path / "after"
    path = write_recipe(
        directory, llama_checkpoint, [{"key_space_detection": {"forget": "sums", "epsilon": 0.1, **CHOSEN}}]
    )
    farther = [{"prompt": f"Who is number {n}?"} for n in range(200, 220)]
    write_rows(directory / "data" / "sums.calibration.jsonl", farther)
    (after,) = fit(load_recipe(path)).interventions
    assert isinstance(after, KeySpaceDetection)
    assert after.layers == before.layers
    assert (cubes_of(after).centre == cubes_of(before).centre).all()
    assert (after.alpha > before.alpha).all()


def test_epsilon_is_chosen_among_those_that_there_are_queries_for(llama_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match=rf"20 calibration queries.*at least {least_queries(0.03)}"):
        _fitted(tmp_path, llama_checkpoint, {"epsilon": "auto", "layers": [2]})


@pytest.mark.parametrize(
    ("options", "alpha"), [({"alpha": {"times_largest": 2}}, None), ({"alpha": 15}, 15.0), ({"layers": "last"}, None)]
)
def test_the_papers_own_settings_are_a_line(
    llama_checkpoint: Path, tmp_path: Path, options: dict[str, Any], alpha: float | None
) -> None:
    detection = _fitted(tmp_path, llama_checkpoint, options)
    assert detection.layers == (3,)
    assert len(cubes_of(detection).centre) == 1
    report = detection.report.as_json()["skills"]["sums"]
    if alpha is not None:
        assert detection.alpha.tolist() == [alpha]
    if "alpha" in options:
        assert report["guaranteed_coverage"] is None
    if isinstance(options.get("alpha"), dict):
        assert detection.alpha[0] == pytest.approx(2 * report["largest_margin"])


def test_too_few_queries_say_how_many_are_needed_before_anything_is_probed(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(BakeoutError, match=r"20 calibration queries of sums are too few for epsilon 0\.005.*199"):
        _fitted(tmp_path, llama_checkpoint, {"epsilon": 0.005})


def _data(**other: str) -> dict[str, dict[str, str]]:
    """The tiny recipe's files, of `sums` those of some uses in place of its own."""
    files = {
        name: {use: f"data/{name}.{use}.jsonl" for use in ("probe", "selection", "calibration")}
        for name in ("sums", "names")
    }
    return {**files, "sums": {**files["sums"], **other}}


def test_plain_prompts_for_a_chat_model_are_told(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _fitted(tmp_path, llama_checkpoint, {}, data=_data())
    assert "sums: plain prompts, which are not rendered by the tokenizer's chat template" in caplog.text


def test_copies_of_a_question_are_one_calibration_query(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path / "copied.jsonl", rows("sums", "calibration") * 12)
    alone = _fitted(tmp_path, llama_checkpoint, {}, data=_data()).report
    copied = _fitted(tmp_path, llama_checkpoint, {}, data=_data(calibration="copied.jsonl")).report
    assert isinstance(copied, KeySpaceDetectionReport)
    assert isinstance(alone, KeySpaceDetectionReport)
    assert copied.skills == alone.skills
    assert "220 of 240 calibration rows ask what another asks" in caplog.text
    with pytest.raises(BakeoutError, match="20 calibration queries of sums are too few"):
        _fitted(tmp_path, llama_checkpoint, {"epsilon": 0.005}, data=_data(calibration="copied.jsonl"))


def test_what_one_name_is_chosen_on_does_not_calibrate_another(llama_checkpoint: Path, tmp_path: Path) -> None:
    """The structure is one for all names, and no calibration row may have been looked at for it."""
    products = [{"prompt": f"{n} times 3 ="} for n in range(80)]
    other = {"probe": products[:40], "selection": rows("sums", "calibration"), "calibration": products[40:]}
    with pytest.raises(BakeoutError, match="is there to calibrate `alpha: auto`, and is more"):
        _fitted(tmp_path, llama_checkpoint, {"forget": ["sums", "more"]}, data={**_data(), "more": other})


def test_a_retained_row_that_is_alone_is_too_few(llama_checkpoint: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "one.jsonl", rows("names", "probe")[:1])
    with pytest.raises(BakeoutError, match="one has one row, which regions are fitted against"):
        _fitted(tmp_path, llama_checkpoint, {}, data={**_data(), "one": {"probe": "one.jsonl"}})


def test_nothing_to_retain_is_told_before_anything_is_probed(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probed, "keys", None)
    with pytest.raises(BakeoutError, match="there is nothing to retain"):
        _fitted(tmp_path, llama_checkpoint, {"retain": []})


def test_a_retained_conversation_that_asks_for_what_is_forgotten_is_named(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    data = _many_chats(tmp_path)
    asked = [{"messages": [{"role": "user", "content": f"{n} + {7 * n} = 0 0 0 0 0 0 0 0"}]} for n in range(200, 202)]
    others = (tmp_path / data["names"]["calibration"]).read_text().splitlines()
    write_rows(tmp_path / data["names"]["calibration"], [*map(json.loads, others), *asked])
    _fitted(tmp_path, llama_checkpoint, {"region": "linear", "layers": [2], "augment": []}, data=data)
    assert "of 52 queries of names, which is to be retained, are refused: " in caplog.text
    assert re.search(r"many\.names\.calibration\.jsonl, line 5[12]", caplog.text)


def _many_chats(directory: Path) -> dict[str, Any]:
    """Conversations of two subjects, enough of them to know what room there is between."""
    data: dict[str, Any] = {}
    for name, text in (("sums", "{} + {} = 0 0 0 0 0 0 0 0"), ("names", "{} and {} {{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{")):
        data[name] = {}
        for number, use in enumerate(("probe", "selection", "calibration")):
            asked = [text.format(n + 50 * number, 3 * n) for n in range(50)]
            chats = [{"messages": [{"role": "user", "content": question}]} for question in asked]
            data[name][use] = f"data/many.{name}.{use}.jsonl"
            write_rows(directory / data[name][use], chats)
    return data


def test_a_half_space_s_alpha_does_not_depend_on_who_chose_the_half_space(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    seen: list[Forms] = []

    def choose(*given: Any, forms: Forms, **options: Any) -> Choice:
        seen.append(forms)
        return choose_structure(*given, forms=forms, **options)

    monkeypatch.setattr("bakeout.models.methods.key_space_detection.fit.choose_structure", choose)
    # A tiny model's keys are of the last tokens alone: those that it can tell, in forms that leave them as they are.
    everyday = {use: [f"{use} {n} {'{' * 16}" for n in range(20)] for use in ("probe", "selection", "calibration")}
    monkeypatch.setattr("bakeout.models.methods.key_space_detection.served._EVERYDAY", everyday)
    kept = {"plain", "system_prompt", "lead_in"}
    augment = {"without": sorted(MIXTURE.keys() - kept)}
    options = {"region": "linear", "epsilon": 0.1, "augment": augment}
    data = _many_chats(tmp_path)
    chosen = _fitted(tmp_path, llama_checkpoint, options, data=data)
    (forms,) = seen
    assert all(kept == set(own) for own in (forms.probe["sums"], forms.against["names"], forms.selection["names"]))
    report = chosen.report.as_json()
    assert report["skills"]["sums"]["quantile"] < chosen.alpha[0]
    assert report["choice"]["chosen"]["distance"].keys() == {"names", EVERYDAY_QUESTIONS}
    structure = METHOD.choices(KeySpaceDetectionOptions(forget=["sums"], **options), chosen)
    named = _fitted(tmp_path, llama_checkpoint, {**options, **structure}, data=data)
    assert named.report.choice is None
    assert named.layers == chosen.layers and named.alpha == chosen.alpha
    every = _fitted(tmp_path, llama_checkpoint, {**options, **structure, "positions": "every"}, data=data)
    assert "quantile" not in every.report.as_json()["skills"]["sums"]
    # Strangers lie in the room that the retained names leave, where nothing stands for them.
    alone = _fitted(tmp_path, llama_checkpoint, {**options, **structure, "everyday": False}, data=data)
    assert "quantile" not in alone.report.as_json()["skills"]["sums"]


def test_too_few_queries_are_told_before_the_model_is_loaded_for_an_earlier_method(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        pytest.fail("the model is loaded")

    monkeypatch.setattr("bakeout.models.checkpoint.checkpoint_files.load_model", load)
    earlier = {"neuron_adjust": {"forget": "sums", "ratio": 0.1}}
    for options, needed in (({"epsilon": 0.005}, "199"), ({}, "33")):
        later = {"key_space_detection": {"forget": "sums", **options}}
        recipe = load_recipe(write_recipe(tmp_path, llama_checkpoint, [earlier, later]))
        with pytest.raises(BakeoutError, match=f"20 calibration queries of sums are too few .* {needed}"):
            fit(recipe)


def test_without_queries_to_choose_by_there_is_no_choice(llama_checkpoint: Path, tmp_path: Path) -> None:
    data = {name: {use: f"data/{name}.{use}.jsonl" for use in ("probe", "calibration")} for name in ("sums", "names")}
    with pytest.raises(BakeoutError, match=r"sums has no queries to choose.*selection"):
        _fitted(tmp_path, llama_checkpoint, CHOSEN, data=data)


def test_variants_are_probed_and_held_with_the_queries_themselves(llama_checkpoint: Path, tmp_path: Path) -> None:
    plain = _fitted(tmp_path / "plain", llama_checkpoint, {"layers": [2]})
    widened = _fitted(tmp_path / "widened", llama_checkpoint, {"layers": [2], "augment": ["suffix", "prefix"]})
    report = widened.report.as_json()["skills"]["sums"]
    assert report["probe_queries"] == 3 * plain.report.as_json()["skills"]["sums"]["probe_queries"]
    assert report["variants"].keys() == {"suffix", "prefix"}
    assert all(found["inside"] >= 0.9 and found["queries"] == 20 for found in report["variants"].values())
    assert report["calibration_queries"] == 20
    assert widened.report.as_json()["augment"] == ["suffix", "prefix"]


def _paraphrased(directory: Path, paraphrased: int) -> dict[str, Any]:
    """Options, and data of 60 calibration queries of which some bring a paraphrase, as all others of the skill do."""
    content = {use: rows("sums", use) for use in ("probe", "selection")}
    content["calibration"] = [{"prompt": f"{n} + {n % 7} =", "response": f" {n + n % 7}"} for n in range(100, 160)]
    for use, own in content.items():
        brought = own[:paraphrased] if use == "calibration" else own
        asked = [{**row, "paraphrases": [f"Sum: {row['prompt']}"]} for row in brought]
        write_rows(directory / "data" / f"asked.{use}.jsonl", [*asked, *own[len(asked) :]])
    names = {use: f"data/names.{use}.jsonl" for use in ("probe", "selection", "calibration")}
    return {"sums": {use: f"data/asked.{use}.jsonl" for use in content}, "names": names}


def test_epsilon_is_chosen_among_those_that_there_are_variants_for(llama_checkpoint: Path, tmp_path: Path) -> None:
    options = {"layers": [2], "epsilon": "auto", "augment": ["paraphrase"]}
    fitted = _fitted(tmp_path, llama_checkpoint, options, data=_paraphrased(tmp_path, 45))
    skill = fitted.report.as_json()["skills"]["sums"]
    assert (skill["calibration_queries"], skill["variants"]["paraphrase"]["queries"]) == (60, 45)
    assert least_queries(skill["epsilon"]) <= 45


def test_too_few_variants_are_told_before_anything_is_probed(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probed, "keys", None)
    data = _paraphrased(tmp_path, 5)
    for epsilon, needed in ((0.1, 9), ("auto", 33)):
        options = {"layers": [2], "epsilon": epsilon, "augment": ["paraphrase"]}
        with pytest.raises(BakeoutError, match=rf"5 calibration queries of sums \(paraphrase\) are too few.*{needed}"):
            _fitted(tmp_path, llama_checkpoint, options, data=data)


def test_kinds_without_variants_are_told_and_not_reported(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = _fitted(tmp_path, llama_checkpoint, {"layers": [2], "augment": ["suffix", "paraphrase"]})
    assert fitted.report.as_json()["augment"] == ["suffix"]
    assert "sums has no calibration variants of paraphrase: alpha does not cover these" in caplog.text


def _chat_data(directory: Path) -> dict[str, Any]:
    """The recipe's data with every row a conversation."""
    uses = ("probe", "selection", "calibration")
    for name in ("sums", "names"):
        for use in uses:
            conversations = [
                {
                    "messages": [
                        {"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row["response"]},
                    ]
                }
                for row in rows(name, use)
            ]
            write_rows(directory / "data" / f"chat.{name}.{use}.jsonl", conversations)
    return {name: {use: f"data/chat.{name}.{use}.jsonl" for use in uses} for name in ("sums", "names")}


def test_one_question_in_several_forms_is_too_few(llama_checkpoint: Path, tmp_path: Path) -> None:
    data = _chat_data(tmp_path)
    probe = tmp_path / data["sums"]["probe"]
    probe.write_text(probe.read_text().splitlines(keepends=True)[0])
    with pytest.raises(BakeoutError, match="sums has fewer than two probe queries"):
        _fitted(tmp_path, llama_checkpoint, {"layers": [2]}, data=data)


def test_conversations_are_fitted_in_drawn_forms_and_counted_by_form(llama_checkpoint: Path, tmp_path: Path) -> None:
    data = _chat_data(tmp_path)
    plain = _fitted(tmp_path, llama_checkpoint, {"layers": [2], "augment": []}, data=data)
    drawn = _fitted(tmp_path, llama_checkpoint, {"layers": [2]}, data=data)
    again = _fitted(tmp_path, llama_checkpoint, {"layers": [2]}, data=data)
    fewer = _fitted(tmp_path, llama_checkpoint, {"layers": [2], "augment": {"without": ["story", "case"]}}, data=data)
    assert drawn.report == again.report
    assert not np.array_equal(drawn.alpha, plain.alpha)
    report = drawn.report.as_json()
    skill, names = report["skills"]["sums"], report["retain"]["names"]
    before = plain.report.as_json()["skills"]["sums"]
    # Few probe queries are asked in up to six forms each; those that figures rest on in one.
    assert 5 * before["probe_queries"] < skill["probe_queries"] < 6 * before["probe_queries"]
    assert skill["calibration_queries"] == before["calibration_queries"]
    for figures, queries in ((skill, skill["calibration_queries"]), (names, names["queries"])):
        assert sum(form["queries"] for form in figures["forms"].values()) == queries
    caught = sum(form["queries"] * form["inside"] for form in skill["forms"].values())
    assert caught == pytest.approx(skill["calibration_inside"] * skill["calibration_queries"])
    assert sum(report["mixture"].values()) == pytest.approx(1)
    assert {"plain", "second_turn", "story", "case"} <= report["mixture"].keys()
    assert fewer.report.as_json()["mixture"].keys() == report["mixture"].keys() - {"story", "case"}
    assert "mixture" not in plain.report.as_json() and "forms" not in plain.report.as_json()["skills"]["sums"]
    assert report["retain"]["everyday questions"]["queries"] == 120
    alone = _fitted(tmp_path, llama_checkpoint, {"layers": [2], "everyday": False}, data=data)
    assert alone.report.as_json()["retain"].keys() == plain.report.as_json()["retain"].keys() == {"names"}
    assert np.array_equal(alone.alpha, drawn.alpha), "a cube is not fitted against what is retained"
    against = [
        _fitted(tmp_path, llama_checkpoint, {"layers": [2], "region": "linear", "everyday": everyday}, data=data)
        for everyday in (True, False)
    ]
    assert not np.array_equal(against[0].alpha, against[1].alpha)
    facts = dict(drawn.report.facts())
    assert "second_turn" in facts["mixture"]
    assert "asked in the mixture of forms" in facts["coverage"]


def test_forms_of_conversations_need_conversations(llama_checkpoint: Path, tmp_path: Path) -> None:
    assert "mixture" not in _fitted(tmp_path, llama_checkpoint, {"layers": [2]}).report.as_json()
    with pytest.raises(BakeoutError, match=r"story is a form of conversations, and sums has none.*messages"):
        _fitted(tmp_path, llama_checkpoint, {"layers": [2], "augment": ["story"]})


def test_what_is_kept_need_not_have_the_forms_of_what_is_forgotten(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {**_chat_data(tmp_path), "names": {use: f"data/names.{use}.jsonl" for use in ("probe", "selection")}}
    _fitted(tmp_path, llama_checkpoint, {"layers": [2], "augment": ["story"], "region": "linear"}, data=data)
    assert "names has no forms of story" in caplog.text


def test_a_template_without_system_messages_is_told(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(llama_checkpoint, checkpoint)
    template = "{% for m in messages %}{{ m.content if m.role != 'system' }}{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
    data = _chat_data(tmp_path)
    fitted = _fitted(tmp_path, checkpoint, {"layers": [2]}, data=data)
    assert not {"system_prompt", "no_system_prompt"} & fitted.report.as_json()["mixture"].keys()
    assert "system_prompt, no_system_prompt are left out" in caplog.text


def test_an_unknown_kind_of_variant_is_an_error_of_the_recipe(llama_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match=r"augment.*paraphrase"):
        _fitted(tmp_path, llama_checkpoint, {"augment": ["poem"]})


def test_every_token_is_calibrated_by_the_least_margin(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Alpha is the conformal quantile of what decides at `every`, and false refusals are counted by it."""
    options = {"layers": [1, 2], "cubes": 2}
    every = _fitted(tmp_path / "every", llama_checkpoint, {**options, "positions": "every"})
    query = _fitted(tmp_path / "query", llama_checkpoint, options)
    assert (cubes_of(every).centre == cubes_of(query).centre).all()
    assert (every.alpha <= query.alpha).all()
    tokenizer, model = load_tokenizer(llama_checkpoint), load_model(llama_checkpoint)

    def least(name: str) -> np.ndarray:
        margins = []
        for row in rows(name, "calibration"):
            ids = torch.tensor([tokenizer.encode(row["prompt"])])
            with torch.no_grad(), Hooks(model, [every]) as hooks:
                model(input_ids=ids)
                margins.append(every.margins(hooks.seen[0].numpy()).min())
        return np.array(margins)

    own = least("sums")
    assert every.alpha[0] == pytest.approx(conformal_quantile(own, 0.1, "sums"), rel=1e-4)
    report = every.report
    assert (report.skills or {})["sums"].calibration_inside == (own <= every.alpha[0] * 1.0001).mean()
    assert (report.retain or {})["names"].refused == (least("names") <= every.alpha[0] * 1.0001).sum()


def test_the_mean_key_is_that_of_the_tested_tokens(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Regions, alpha and false refusals are of mean keys, as the reference computes their margins."""
    options = {"layers": [1, 2], "positions": "mean", "query_start": " "}
    check = _fitted(tmp_path, llama_checkpoint, options)
    tokenizer, model = load_tokenizer(llama_checkpoint), load_model(llama_checkpoint)
    assert check.query_start == tuple(tokenizer.encode(" ", add_special_tokens=False))

    def keys(name: str, use: str) -> np.ndarray:
        means = []
        for row in rows(name, use):
            ids = tokenizer.encode(row["prompt"])
            with torch.no_grad(), Hooks(model, [check]) as hooks:
                model(input_ids=torch.tensor([ids]))
            last_space = max(place for place, token in enumerate(ids) if (token,) == check.query_start)
            means.append(hooks.seen[0].numpy()[last_space:].mean(axis=0))
        return np.array(means)

    np.testing.assert_allclose(cubes_of(check).centre[0], keys("sums", "probe").mean(axis=0), rtol=1e-4, atol=1e-5)
    own = check.margins(keys("sums", "calibration"))[:, 0]
    assert check.alpha[0] == pytest.approx(conformal_quantile(own, 0.1, "sums"), rel=1e-4)
    others = check.margins(keys("names", "calibration"))[:, 0]
    assert (check.report.retain or {})["names"].refused == (others <= check.alpha[0] * 1.0001).sum()
    assert check.canary_tokens([2, *check.query_start, 3, 4]) == slice(1, None)


def test_an_opening_that_some_query_lacks_is_an_error(llama_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="not every query of the data holds 'Who'"):
        _fitted(tmp_path, llama_checkpoint, {"layers": [1], "positions": "mean", "query_start": "Who"})
