"""The report: everything that was given is on the page, the same bytes each time, and nothing hostile gets through."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import content_digest, read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.evaluation.rows import BASE, Change, DataInput, Evaluation, Inputs, Row, TaskRow, TextRow
from bakeout.export.report.drawings import neurons
from bakeout.export.report.evaluation_file import read_evaluation
from bakeout.export.report.figures_file import figures_json, read_figures
from bakeout.export.report.page import report, write_report
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.data.row_source import source_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan
from bakeout.models.plan.model_identity import Routing
from bakeout.models.plan.plan_file import save_plan

from tests.plan_examples import MODEL, adjusted_layer, neuron_adjust
from tests.report_files import EVALUATION, FIGURES, write_evaluation, write_figures
from tests.weight_plans import low_rank_update, plan_of, zero_columns

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;$\\alpha^{$ {{ 7 * 6 }} </style> url(#x"


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("report") / "artifact").directory


class _Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_that_was_given_is_on_the_page(artifact: Path, tmp_path: Path) -> None:
    figures = write_figures(tmp_path / "figures.json", FIGURES)
    evaluation = write_evaluation(tmp_path / "evaluation.json")
    page = _Page(report([artifact], evaluations=[evaluation], figures=[figures]))
    # Four drawn figures, and the most changed neurons of the artifact's own Neuron Adjust.
    assert page.tags.count("svg") == 5
    words = " ".join(page.text.split())
    for expected in (
        "Made to forget: sums",
        "2.0 %\N{MINUS SIGN}96.0 [\N{MINUS SIGN}99.0, \N{MINUS SIGN}91.0]95.0 % refused",
        "1.0100[0.9900, 1.0300]",
        "exact_match (strict)",
        "0.2500",
        "15.0 %30 of 200",
        "0.42",
        "bakeout verify artifact --digest " + hash_file(artifact / MANIFEST),
        "Source: a benchmark",
    ):
        assert expected in words, expected
    for receipt in json.loads((artifact / MANIFEST).read_text())["receipts"]:
        assert receipt["after"][:12] in words
    assert "Left out of this page" not in words


def _graded(**graders: str) -> dict[str, Any]:
    rows = [{**row, "grade": graders.get(row["data"], "exact")} for row in EVALUATION["rows"]]
    return {**EVALUATION, "rows": rows}


@pytest.mark.parametrize(
    ("graders", "heading", "below"),
    [
        ({}, "answered exactly right.", "sums100 prompts"),
        ({"sums": "contains", "names": "contains"}, "answered right, as the grader contains judges.", "contains"),
        ({"sums": "number"}, "answered right, as the grader named below each skill judges.", "90 prompts, exact"),
    ],
    ids=["exact", "one grader", "several"],
)
def test_the_page_says_what_was_graded(
    artifact: Path, tmp_path: Path, graders: dict[str, str], heading: str, below: str
) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation.json", _graded(**graders))
    words = _Page(report([artifact], evaluations=[evaluation])).text
    assert f"Share of prompts {heading}" in words
    assert below in words
    assert ("exactly right" in words) is (not graders)


def test_a_share_of_fewer_prompts_has_its_own_count(artifact: Path, tmp_path: Path) -> None:
    content = copy.deepcopy(EVALUATION)
    content["rows"][2]["prompts"] = 400
    page = _Page(report([artifact], evaluations=[write_evaluation(tmp_path / "evaluation.json", content)]))
    assert "2.0 %400 prompts" in page.text
    assert "96.0 %90 prompts" not in page.text


def test_figures_that_cannot_be_compared_are_one_line(artifact: Path, tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "exact.json")
    other = write_evaluation(tmp_path / "contains.json", _graded(sums="contains"))
    arguments = ["report", artifact, "--evaluation", one, "--evaluation", other, "-o", tmp_path / "r.html"]
    _is_one_line(arguments, "exact.json and")
    _is_one_line(arguments, "contains.json measured sums differently: graded exact and contains.")
    assert not (tmp_path / "r.html").exists()


def test_an_artifact_without_an_evaluation_is_named(artifact: Path, tmp_path: Path) -> None:
    other = shutil.copytree(artifact, tmp_path / "other")
    evaluation = write_evaluation(tmp_path / "evaluation.json")
    assert "No evaluation was given of other." in _Page(report([artifact, other], evaluations=[evaluation])).text
    assert "No evaluation was given" not in report([artifact], evaluations=[evaluation])
    assert "No evaluation was given" not in report([artifact, other])


def test_what_evaluate_prints_belongs_to_the_artifact_that_it_measured(artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text(json.dumps({"prompt": "one", "response": "two"}) + "\n", encoding="utf-8")
    moved = shutil.copytree(artifact, tmp_path / "moved" / "artifact")
    command = ["evaluate", str(moved), "--data", str(data), "--max-new-tokens", "2", "--json"]
    evaluated = CliRunner().invoke(main, command)
    assert evaluated.exit_code == 0, evaluated.output
    inputs = json.loads(evaluated.stdout)["inputs"]
    assert inputs["artifacts"] == {"artifact": content_digest(read_manifest(artifact))}
    assert inputs["data"]["sums"]["digest"] == source_digest(data)
    assert str(tmp_path) not in evaluated.stdout
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(evaluated.stdout, encoding="utf-8")
    page = report([artifact], evaluations=[evaluation])
    assert "1 prompts" in page
    assert str(tmp_path) not in page
    another = shutil.copytree(artifact, tmp_path / "another" / "artifact")
    manifest = json.loads((another / MANIFEST).read_text())
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64
    (another / MANIFEST).write_text(json.dumps(manifest))
    rest = ["--evaluation", evaluation, "-o", tmp_path / "r.html"]
    _is_one_line(["report", another, *rest], "another model called artifact")
    _is_one_line(["report", another.rename(tmp_path / "renamed"), *rest], "no row of renamed, but of artifact")


def test_what_was_not_given_is_named_with_what_measures_it(artifact: Path) -> None:
    page = _Page(report([artifact]))
    assert "bakeout evaluate DIR… --base MODEL" in page.text
    assert "Left out of this page" in page.text
    for title in ("at each α", "layer by layer", "Languages", "Attacks", "matched forgetting"):
        assert title in page.text.split("Left out")[1]


def test_edits_of_weights_are_described(llama_checkpoint: Path, llama_export: Path, tmp_path: Path) -> None:
    model, digest = load_model(llama_checkpoint), weights_digest(llama_checkpoint)
    update, columns = low_rank_update(model), zero_columns(1, columns=[1, 5])
    edited = bake(llama_export, plan_of(model, digest, update, columns), tmp_path / "edited").directory
    words = " ".join(_Page(report([edited])).text.split())
    assert "Low-rank update by random 6 weights in 2 layers" in words
    assert "layer 0, down rank 2 layer 0, gate rank 2" in words
    assert "Zeroed columns 2 neurons in 1 layer" in words
    assert "7 receipts" in words
    assert "Edited models" in words


def test_the_page_is_self_contained_and_runs_nothing(artifact: Path, tmp_path: Path) -> None:
    text = report([artifact], figures=[write_figures(tmp_path / "figures.json", FIGURES)])
    page = _Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in {"src", "href"} and not value.startswith("#")]
    assert "default-src 'none'" in text
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    used = {value[1:] for name, value in page.attributes if name == "href"} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(identifiers)


def test_the_same_inputs_give_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    figures = write_figures(tmp_path / "figures.json", FIGURES)
    evaluation = write_evaluation(tmp_path / "evaluation.json")
    write_report([artifact], tmp_path / "one.html", evaluations=[evaluation], figures=[figures])
    command = [sys.executable, "-m", "bakeout.export.cli", "report", str(artifact), "--figures", str(figures)]
    command += ["--evaluation", str(evaluation), "-o", str(tmp_path / "two.html")]
    environment = {"PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "0", "HOME": str(tmp_path)}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "one.html").read_bytes()


def _renamed(value: Any) -> Any:
    """Every name in a file of figures or of an evaluation made hostile, differently each."""
    if isinstance(value, dict):
        renamed = {
            f"{HOSTILE}{key}" if key in {"sums", "names", "code"} else key: _renamed(inner)
            for key, inner in value.items()
        }
        return {
            key: (
                f"{HOSTILE}{inner}"
                if key not in {"kind"} and isinstance(inner, str)
                else [f"{HOSTILE}{one}" for one in inner]
                if key in {"forgotten", "tested"} and isinstance(inner, list)
                else inner
            )
            for key, inner in renamed.items()
        }
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value


def test_hostile_names_are_text(artifact: Path, tmp_path: Path) -> None:
    figures = write_figures(tmp_path / "figures.json", _renamed(FIGURES))
    evaluation = write_evaluation(tmp_path / "evaluation.json", _renamed(EVALUATION))
    page = _Page(report([artifact], evaluations=[evaluation], figures=[figures]))
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == 1 + page.tags.count("svg")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 20


def test_plots_hold_what_they_say(artifact: Path, tmp_path: Path) -> None:
    text = report([artifact], figures=[write_figures(tmp_path / "figures.json", FIGURES)])
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    words = [" ".join(_Page(drawing).text.split()) for drawing in drawings]
    assert "chosen" in words[0]
    assert "names" in words[0]
    assert "volume" in words[1]
    assert "separation" in words[1]
    assert "0.2 (chosen)" in words[2]
    assert "98.0%" in words[3]
    assert "neuron" in words[4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda figures: figures[0].update(kind="pie"), "kind"),
        (lambda figures: figures[0]["shares"]["names"].pop(), "5 values for 6"),
        (lambda figures: figures[0]["shares"]["names"].__setitem__(1, 1.5), "less than or equal to 1"),
        (lambda figures: figures[1]["panels"][0]["series"]["sums"].append(1), "4 values for 3"),
        (lambda figures: figures[0].update(shares={}), "shares"),
        (lambda figures: figures[1].update(panels=[]), "panels"),
        (lambda figures: figures[1]["panels"][0].update(series={}), "series"),
        (lambda figures: figures[2].update(points=[]), "points"),
        (lambda figures: figures[2]["points"][1]["others"].pop("code"), "different names"),
        (lambda figures: figures[3]["shares"].pop(), "shares"),
        (lambda figures: figures[4]["methods"][0].update(latency=0), "latency"),
        (lambda figures: figures[5]["rows"][0].update(through=500), "500"),
        (lambda figures: figures[5].update(extra=1), "extra"),
    ],
)
def test_a_bad_figures_file_is_one_line(tmp_path: Path, change: Any, words: str) -> None:
    figures = copy.deepcopy(FIGURES)
    change(figures)
    with pytest.raises(BakeoutError, match=words) as caught:
        read_figures(write_figures(tmp_path / "figures.json", figures))
    assert "figures.json" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"schema": 2, "rows": []},
        {"schema": 1, "rows": [{"model": "base"}]},
        {"schema": 1, "rows": [{**EVALUATION["rows"][0], "accuracy": 7}]},
        {"schema": 1, "rows": [{**EVALUATION["rows"][2], "change_interval": [1]}]},
        {"schema": 1, "rows": [], "texts": [{"model": "base"}]},
        {"schema": 1, "rows": [], "tasks": [{"task": "x"}]},
        {**EVALUATION, "inputs": {"artifacts": {"out/artifact": "unlike a digest"}, "data": {}, "texts": {}}},
        {**EVALUATION, "inputs": {"artifacts": {}, "data": {"sums": {"digest": "1" * 64}}, "texts": {}}},
        {"schema": 1, "rows": [], "texts": [{**EVALUATION["texts"][1], "perplexity_ratio": None}]},
        {"schema": 1, "rows": [], "texts": [{**EVALUATION["texts"][1], "divergence_interval": None}]},
    ],
    ids=str,
)
def test_a_bad_evaluation_is_one_line(artifact: Path, tmp_path: Path, content: Any) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation.json", content)
    _is_one_line(["report", artifact, "--evaluation", evaluation, "-o", tmp_path / "r.html"], "evaluation.json")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"null"])
def test_files_that_are_no_json_are_one_line(artifact: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.json").write_bytes(content)
    for option in ("--evaluation", "--figures"):
        _is_one_line(["report", artifact, option, tmp_path / "broken.json", "-o", tmp_path / "r.html"], "broken.json")
        _is_one_line(["report", artifact, option, tmp_path / "nowhere.json", "-o", tmp_path / "r.html"], "nowhere.json")


def test_what_is_no_artifact_and_what_exists_is_one_line(artifact: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    plan = tmp_path / "plan.safetensors"
    save_plan(tiny_plan, plan)
    _is_one_line(["report", plan, "-o", tmp_path / "r.html"], "plan")
    _is_one_line(["report", tmp_path, "-o", tmp_path / "r.html"], "not an artifact")
    (tmp_path / "there.html").write_text("mine")
    _is_one_line(["report", artifact, "-o", tmp_path / "there.html"], "exists already")
    assert (tmp_path / "there.html").read_text() == "mine"


def test_figures_are_written_as_they_are_read(tmp_path: Path) -> None:
    figures = read_figures(write_figures(tmp_path / "figures.json", FIGURES))
    (tmp_path / "again.json").write_text(json.dumps(figures_json(figures)), encoding="utf-8")
    assert read_figures(tmp_path / "again.json") == figures


def _is_one_line(arguments: list[Any], words: str) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr


@pytest.mark.parametrize(
    ("kind", "name"),
    [("rows", "prompts"), ("rows", "available"), ("rows", "gained"), ("texts", "texts"), ("texts", "refused")],
)
@pytest.mark.parametrize("count", ["9" * 400, 10**400, 2**60, -1], ids=["text", "long", "not a double", "negative"])
def test_a_count_that_no_computation_takes_is_refused(kind: str, name: str, count: object, tmp_path: Path) -> None:
    content = json.loads(json.dumps(EVALUATION))
    for row in content[kind]:
        row[name] = count
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BakeoutError, match=name):
        read_evaluation(path)


def test_an_evaluation_is_read_as_it_is_written(tmp_path: Path) -> None:
    evaluation = Evaluation(
        rows=(
            Row(BASE, "sums", 200, 0.98, 0.0),
            Row("one", "sums", 200, 0.02, 0.97, Change(-0.96, (-0.98, -0.92), True, lost=193, gained=1)),
        ),
        texts=(TextRow(BASE, "prose", 40, 0, 12.5), TextRow("one", "prose", 40, 3, 12.6, 1.0, (0.9, 1.1), 0.0, (0, 0))),
        tasks=(TaskRow("one", "gsm8k", "exact_match", "strict", 0.25, None),),
        inputs=Inputs({"one": "1" * 64}, {"sums": DataInput("2" * 64, {"grade": {"exact": {}}})}, {"prose": "3" * 64}),
    )
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation.as_json()), encoding="utf-8")
    assert read_evaluation(path) == evaluation


def test_a_neuron_of_an_expert_is_called_by_its_router_and_its_number() -> None:
    model = replace(MODEL, routing=Routing((4, 4), 2, width=16))
    adjust = neuron_adjust(layers=(adjusted_layer(layer=2), adjusted_layer(layer=9)))
    named = {row[0] for row in neurons(adjust, model, "a").rows}
    assert named == {f"{place}, neuron {number}" for place in ("layer 2", "router 1, expert 1") for number in (1, 5)}
