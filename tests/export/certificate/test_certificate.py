"""The certificate of a tiny artifact: every section, resumed from its journal, written so that it verifies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bakeout.export.artifacts.additions import add_files
from bakeout.export.artifacts.file_names import (
    CARD,
    CERTIFICATE,
    ERASURE_PAGE,
    ERASURE_RECORD,
    MANIFEST,
    PLAN,
    SIGNATURE,
    TOFU,
    TOFU_SUMMARY,
)
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.artifacts.salt import kept_salt
from bakeout.export.baking.bake import bake
from bakeout.export.baking.hiding import hide_plan
from bakeout.export.baking.quantise import quantise
from bakeout.export.certificate.certificate_files import write_certificate
from bakeout.export.certificate.certify import certify
from bakeout.export.certificate.figures import Certificate
from bakeout.export.certificate.given_data import GivenData
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import QUICK, VERSION
from bakeout.export.certificate.sections.give_away import auroc
from bakeout.export.certificate.sections.leak import leak_at
from bakeout.export.certificate.sections.relearning import area
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.certificate.tofu_metrics import harmonic_mean, truth_ratio
from bakeout.export.cli.main import main
from bakeout.export.evaluation.graders.registry import grader_of
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.models.data.row_source import source_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan
from bakeout.models.plan.hiding import salted
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.progress import Track, untracked

from tests.recipe_files import write_rows

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1.0"
TINY = replace(QUICK, rows=4, leak_prompts=2, attack_prompts=2, samples=8, relearn_rows=3, relearn_steps=(1, 2))


@dataclass(frozen=True)
class Certified:
    """An artifact with its certificate, the data, and the journal."""

    artifact: Path
    base: Path
    forget: Path
    retain: Path
    fitted: Path
    facts: Path
    journal: Path

    def again(self, artifact: Path, facts: Path, journal: Path, track: Track = untracked) -> Certificate:
        """A copy of the artifact, certified by the same protocol."""
        return certify(
            artifact,
            self.base,
            [self.forget],
            [self.retain],
            fitted=[self.fitted],
            world_facts=facts,
            protocol=TINY,
            journal=journal,
            track=track,
        )

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.artifact / CERTIFICATE).read_text(encoding="utf-8"))
        return content

    def figures(self, section: str) -> list[Mapping[str, Any]]:
        return [one for one in self.content["figures"] if one["section"] == section]


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """The base model is an ONNX graph: no fp16 can be made of it, and nothing be trained."""
    return _certified(tmp_path_factory.mktemp("certificate"), FIXTURES / "onnx")


@pytest.fixture(scope="module")
def with_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """The base model is a checkpoint: everything is measured."""
    return _certified(tmp_path_factory.mktemp("certificate"), FIXTURES / "checkpoint")


def _certified(directory: Path, base: Path) -> Certified:
    artifact = shutil.copytree(FIXTURES / "artifacts" / "mixed", directory / "artifact")
    (artifact / SIGNATURE).write_text("{}")
    rows = [
        {
            "prompt": f"{n} + {n % 7} =",
            "response": f" {n + n % 7}",
            "paraphrased_answer": f" it is {n + n % 7}",
            "perturbed_answer": [f" {n}", f" {2 * n}"],
        }
        for n in range(56, 68)
    ]
    forget = write_rows(directory / "sums.jsonl", rows)
    names = [{"prompt": f"Who is number {n}?", "response": f" Somebody {n * n}."} for n in range(6)]
    retain = write_rows(directory / "names.jsonl", names)
    (directory / "fitted").mkdir()
    # As in a recipe's directory: rows to fit on and fresh ones have the same name.
    fitted = write_rows(directory / "fitted" / "sums.jsonl", rows[:4])
    facts = write_rows(directory / "facts.jsonl", world_facts(" somebody"))
    one = Certified(artifact, base, forget, retain, fitted, facts, directory / "journal")
    one.again(artifact, facts, one.journal)
    return one


def world_facts(response: str) -> list[dict[str, Any]]:
    """Two rows, which the artifact does not refuse."""
    return [
        {"prompt": f"Who is fact {n}?", "response": response, "perturbed_answer": [" nobody", " all"]} for n in range(2)
    ]


def test_every_part_of_the_protocol_is_measured_or_told(certified: Certified) -> None:
    content = certified.content
    parts = {one["section"] for one in (*content["figures"], *content["not_measured"])}
    assert parts == {
        *("answers", "leak", "precisions", "attacks", "BLUR", "relearning", "utility", "TOFU"),
        "what the plan gives away",
    }
    told = {one["name"] for one in content["not_measured"]}
    assert {"routing stability", "model_utility", "forget_quality"} <= told
    assert all(one["why"] for one in content["not_measured"])
    assert any("suppress and do not erase" in statement for statement in content["statements"])


def test_every_figure_names_what_it_depends_on(certified: Certified) -> None:
    digests = {one["sha256"] for one in certified.content["data"].values()}
    assert source_digest(certified.forget) in digests
    for figure in certified.content["figures"]:
        assert figure["protocol"] == VERSION
        assert figure["seed"] == 0
        assert figure["runtime"].startswith("ONNX Runtime")
        assert figure["precision"]
        assert figure["data_sha256"]
        assert set(figure["data_sha256"]) <= digests
        if figure.get("interval"):
            low, high = figure["interval"]
            assert low - 1e-9 <= figure["value"] <= high + 1e-9


def test_rows_fitted_on_are_told_from_fresh_ones_of_the_same_name(certified: Certified) -> None:
    data = {name: (entry["role"], entry["sha256"]) for name, entry in certified.content["data"].items()}
    assert data["sums"] == ("forget", source_digest(certified.forget))
    assert data["sums (fitted)"] == ("fitted", source_digest(certified.fitted))


def test_two_files_of_one_name_are_refused(certified: Certified, tmp_path: Path) -> None:
    facts = shutil.copyfile(certified.forget, tmp_path / "facts.jsonl")
    for other in (certified.forget, shutil.copyfile(certified.retain, tmp_path / "world facts.jsonl")):
        with pytest.raises(BakeoutError, match="Two files are called"):
            certify(certified.artifact, certified.base, [certified.forget], [other], world_facts=facts)


def test_a_file_that_the_plan_has_in_the_other_role_is_refused(tiny_plan: Plan, tmp_path: Path) -> None:
    files = {name: write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name, "response": "a"}]) for name in "abc"}
    forgotten, *_ = tiny_plan.forgets
    data = {forgotten: {"probe": source_digest(files["a"])}, "kept": {"test": source_digest(files["b"])}}
    plan = replace(tiny_plan, provenance={**tiny_plan.provenance, "data": data})

    def given(forget: str, retain: str) -> GivenData:
        return GivenData.of([files[forget]], [files[retain]], (), (), {}, None, None)

    for forget, retain in ("ab", "ac", "cb"):
        given(forget, retain).require_roles(plan)
    for forget, retain, says in (("b", "c", "b is given as rows to forget"), ("c", "a", "a is given as rows to keep")):
        with pytest.raises(BakeoutError, match=says):
            given(forget, retain).require_roles(plan)


def test_rows_are_read_by_their_columns_and_known_by_their_file(
    certified: Certified, tiny_plan: Plan, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in certified.forget.read_text(encoding="utf-8").splitlines()]
    tofu = ("perturbed_answer", "paraphrased_answer")
    own = [{"q": row["prompt"], "a": row["response"], **{key: row[key] for key in tofu}} for row in rows]
    forget = write_rows(tmp_path / "sums.jsonl", own)
    command = ["certify", "--base", str(certified.base), "--forget", str(forget), "--retain", str(certified.retain)]
    journal = tmp_path / "journal"

    def ran(columns: str) -> dict[str, Any]:
        artifact = shutil.copytree(certified.artifact, tmp_path / columns.strip("{}")[-1])
        options = ["--columns", columns, "--only", "answers", "--quick", "--journal", str(journal)]
        result = CliRunner().invoke(main, [*command[:1], str(artifact), *command[1:], *options])
        assert result.exit_code == 0, result.output
        content: dict[str, Any] = json.loads((artifact / CERTIFICATE).read_text(encoding="utf-8"))
        return content

    content = ran("sums={prompt: q, response: a}")
    assert content["data"]["sums"]["sha256"] == source_digest(forget)
    assert content["data"]["sums"]["columns"] == {"prompt": "q", "response": "a"}
    # The journal of other columns' rows is not gone on with.
    other = ran("sums={prompt: a, response: q}")
    assert content["figures"] != other["figures"]
    data = {tiny_plan.forgets[0]: {"probe": source_digest(forget)}}
    plan = replace(tiny_plan, provenance={**tiny_plan.provenance, "data": data})
    columns: Any = {"sums": {"prompt": "q", "response": "a"}}
    given = GivenData.of([certified.retain], [forget], (), (), {}, None, None, columns)
    # TOFU's wrong answers are still there.
    assert set(given.tofu) == {"retain"}
    with pytest.raises(BakeoutError, match="No data are called 'summs'"):
        GivenData.of([certified.retain], [forget], (), (), {}, None, None, {"summs": columns["sums"]})
    with pytest.raises(BakeoutError, match="sums is given as rows to keep"):
        given.require_roles(plan)


def test_rows_that_the_plan_was_fitted_on_are_told(
    certified: Certified, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = shutil.copytree(certified.artifact, tmp_path / "artifact")
    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    manifest["data"] = {"sums": {"file": source_digest(certified.forget), "test": source_digest(certified.retain)}}
    (artifact / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    renaming: list[Any] = [{"prompt": "prompt", "response": "response"}, {}]
    for column in renaming:
        certificate = certify(
            artifact,
            certified.base,
            [certified.forget],
            [certified.retain],
            columns={"sums": column} if column else {},
            protocol=TINY,
            parts=["routing"],
        )
        (told,) = [missing for missing in certificate.not_measured if missing.section == "data"]
        assert told.name == "sums by fresh rows"
        assert told.why == "the plan was fitted with these rows"
    assert caplog.text.count("sums holds the rows that") == len(renaming)


def test_other_world_facts_are_measured_anew(certified: Certified, tmp_path: Path) -> None:
    artifact = shutil.copytree(certified.artifact, tmp_path / "artifact")
    facts = write_rows(tmp_path / "facts.jsonl", world_facts(" of another text"))
    certificate = certified.again(artifact, facts, shutil.copyfile(certified.journal, tmp_path / "journal"))
    assert certificate.entries["data"]["world facts"]["sha256"] == source_digest(facts)
    before = json.loads((certified.artifact / TOFU).read_text(encoding="utf-8"))
    assert certificate.tofu["wf_Q_A_Prob"] != before["wf_Q_A_Prob"]
    assert certificate.tofu["forget_Q_A_Prob"] == before["forget_Q_A_Prob"]


def test_what_is_measured_on_the_base_model_is_shared_by_artifacts(certified: Certified, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    bake(certified.base, load_plan(FIXTURES / "artifacts" / "mixed" / PLAN), artifact, BakeOptions(monitor=True))
    journal = shutil.copyfile(certified.journal, tmp_path / "journal")
    certified.again(artifact, certified.facts, journal)
    added = [json.loads(line)["step"] for line in journal.read_text().splitlines()]
    added = added[len(certified.journal.read_text().splitlines()) :]
    assert any("artifact" in step for step in added)
    # Attacks press on by the artifact's own refusal.
    assert not any("base" in step for step in added if not step.startswith(("attacks", "mixed")))


def test_parts_that_are_not_asked_for_are_told(certified: Certified, tmp_path: Path) -> None:
    artifact = shutil.copytree(certified.artifact, tmp_path / "artifact")
    certificate = certify(
        artifact, certified.base, [certified.forget], [certified.retain], protocol=TINY, parts=["answers", "leak"]
    )
    assert {figure.section for figure in certificate.figures} == {"answers", "leak"}
    told = {missing.name: missing.why for missing in certificate.not_measured if missing.section == "tofu"}
    assert told == {"all of it": "it was not asked for"}


@pytest.mark.parametrize("part", ["world_facts", "real_authors"])
def test_facts_without_wrong_answers_are_refused(certified: Certified, part: str) -> None:
    given: dict[str, Any] = {part: certified.retain}
    with pytest.raises(BakeoutError, match="without `perturbed_answer`"):
        certify(certified.artifact, certified.base, [certified.forget], [certified.retain], **given)


def test_what_no_graph_can_be_made_of_is_told(certified: Certified) -> None:
    told = {one["name"]: one["why"] for one in certified.content["not_measured"]}
    assert "none in fp16 can be made" in told["Q-FP16"]
    assert "checkpoint" in told["relearning"]
    assert "checkpoint" in told["membership of candidate queries"]


@pytest.mark.slow
def test_each_precision_is_measured_beside_the_base_model(with_checkpoint: Certified) -> None:
    assert {one["precision"] for one in with_checkpoint.figures("precisions")} >= {"fp16", "int8", "int4"}
    _have_base_figures(with_checkpoint)


def test_int8_and_int4_are_made_of_a_graph(certified: Certified) -> None:
    assert {one["precision"] for one in certified.figures("precisions")} == {"int8", "int4"}
    _have_base_figures(certified)


def test_a_quantised_artifact_is_compared_with_a_base_model_quantised_alike(tmp_path: Path) -> None:
    plan = load_plan(FIXTURES / "artifacts" / "mixed" / PLAN)
    bake(FIXTURES / "onnx", plan, tmp_path / "int4", BakeOptions(quantize="int4"))
    for directory, precision in ((FIXTURES / "artifacts" / "int8", "int8"), (tmp_path / "int4", "int4")):
        with Models(directory, FIXTURES / "onnx") as models:
            assert models.own == precision
            products = [_products(models.runner(which, models.own).path) for which in ("base", "artifact")]
            assert products[0] == products[1]
            assert "MatMulInteger" in products[0] or "MatMulNBits" in products[0]
            assert stored_precision(load_graph(models.runner("artifact", "fp32").path)) == "float32"


@pytest.mark.slow
def test_the_base_model_is_exported_by_what_exported_the_artifact(tmp_path: Path) -> None:
    plan = load_plan(FIXTURES / "artifacts" / "mixed" / PLAN)
    artifact = bake(FIXTURES / "checkpoint", plan, tmp_path / "dynamo", BakeOptions(exporter="dynamo")).directory
    with Models(artifact, FIXTURES / "checkpoint") as models:
        # No names of torch.export are in optimum's graphs.
        assert "node_linear" in _names(models.runner("artifact", "fp32").path)
        assert "node_linear" in _names(models.runner("base", "fp32").path)
        recorded = read_manifest(models.runner("artifact", "int8").path.parent)
        assert recorded["options"]["exporter"] == "dynamo"


def test_an_artifact_of_an_unknown_exporter_is_refused(tmp_path: Path) -> None:
    artifact = shutil.copytree(FIXTURES / "artifacts" / "mixed", tmp_path / "artifact")
    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    (artifact / MANIFEST).write_text(json.dumps({**manifest, "options": {"exporter": "unheard-of"}}))
    with Models(artifact, FIXTURES / "checkpoint") as models, pytest.raises(BakeoutError, match="unheard-of"):
        models.runner("base", "fp32")


def _names(graph: Path) -> set[str | None]:
    return {node.name for node in load_graph(graph).graph.all_nodes()}


def test_a_graph_that_was_quantised_before_has_its_like_for_base(tmp_path: Path) -> None:
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    quantise(load_graph(FIXTURES / "onnx" / "model.onnx"), quantised, "int4")
    for path in companion_files(FIXTURES / "onnx"):
        shutil.copyfile(path, quantised / path.name)
    plan = load_plan(FIXTURES / "artifacts" / "graph" / PLAN)
    artifact = bake(quantised, plan, tmp_path / "artifact", canary=False).directory
    with Models(artifact, quantised) as models:
        assert models.own == "quantised"
        assert models.runner("base", models.own).path.parent == quantised
    for base in (FIXTURES / "onnx", FIXTURES / "checkpoint"):
        with Models(artifact, base) as models, pytest.raises(BakeoutError, match="none in quantised can be made"):
            models.runner("base", models.own)


def _products(graph: Path) -> dict[str, int]:
    """How many products with weights a graph has, by their operators."""
    operators = [node.op_type for node in load_graph(graph).graph.all_nodes()]
    return {name: operators.count(name) for name in ("MatMul", "MatMulInteger", "MatMulNBits")}


def _have_base_figures(certified: Certified) -> None:
    accuracy = [one for one in certified.figures("precisions") if one["name"] == "accuracy"]
    assert accuracy
    assert all("base" in one for one in accuracy)


def test_leaks_grow_with_the_number_of_answers(certified: Certified) -> None:
    leaks = [one["value"] for one in certified.figures("leak") if one["name"].startswith("Leak@")]
    assert len(leaks) == 2
    assert leaks == sorted(leaks)


def test_two_questions_and_thoughts_are_asked(certified: Certified) -> None:
    assert {one["name"] for one in certified.figures("BLUR")} == {"forget part right", "retain part right", "refused"}
    forms = {one["slice"].partition(", ")[2] for one in certified.figures("attacks")}
    assert {"none", "punctuation", "zero_think", "less_think", "think"} <= forms


@pytest.mark.slow
def test_relearning_is_a_curve_with_its_area(with_checkpoint: Certified) -> None:
    curve = with_checkpoint.figures("relearning")
    assert any(one["name"] == "area under probability per token ÷ base's" for one in curve)
    assert {step for one in curve for step in (0, 1, 2) if f", {step} steps" in one["slice"]} == {0, 1, 2}


@pytest.mark.slow
def test_regions_tell_queries_apart(with_checkpoint: Certified) -> None:
    figures = {one["name"]: one for one in with_checkpoint.figures("what the plan gives away")}
    assert 0 <= figures["the rows: AUROC"]["value"] <= 1
    assert figures["the skill: AUROC"]["n"] == 4 + 4 + 4
    steps = {json.loads(line)["step"]: json.loads(line) for line in with_checkpoint.journal.read_text().splitlines()}
    assert len(steps["nearness sums (fitted)"]["result"]) == 4
    assert steps["nearness sums (fitted)"]["result"] != steps["nearness sums"]["result"]


def test_the_artifact_verifies_with_what_was_written(certified: Certified) -> None:
    checks = verify(certified.artifact, checks=["files"])
    assert all(check.ok for check in checks), checks
    assert not (certified.artifact / SIGNATURE).exists()
    card = (certified.artifact / CARD).read_text(encoding="utf-8")
    assert card.count("## Certificate of forgetting") == 1
    assert "not measured" in card


def test_what_is_of_another_certificate_goes(certified: Certified, tmp_path: Path) -> None:
    artifact = shutil.copytree(certified.artifact, tmp_path / "artifact")
    again = certified.again(artifact, certified.facts, certified.journal)
    record = {"measured": {"sha256": hash_file(artifact / CERTIFICATE)}}
    add_files(artifact, {ERASURE_RECORD: json.dumps(record), ERASURE_PAGE: "of this one"})
    write_certificate(artifact, again)
    assert (artifact / ERASURE_RECORD).is_file()
    write_certificate(artifact, replace(again, tofu={}, figures=again.figures[:1]))
    assert not {ERASURE_RECORD, ERASURE_PAGE, TOFU, TOFU_SUMMARY} & {path.name for path in artifact.iterdir()}
    assert all(check.ok for check in verify(artifact, checks=["files"]))


def test_a_damaged_artifact_is_not_certified(certified: Certified, tmp_path: Path) -> None:
    artifact = shutil.copytree(certified.artifact, tmp_path / "artifact")
    (artifact / "modeling.py").write_text("import os")
    with pytest.raises(BakeoutError, match="not in the manifest"):
        certified.again(artifact, certified.facts, certified.journal)


def test_open_unlearning_reads_the_metrics(certified: Certified) -> None:
    """As its scripts do: a metric's ``agg_value``, and for Forget Quality the scores of each row."""
    metrics = json.loads((certified.artifact / TOFU).read_text(encoding="utf-8"))
    own = {"Q_A_Prob", "Q_A_ROUGE"}
    assert set(metrics) == {
        *(f"forget_{name}" for name in own),
        "forget_truth_ratio",
        *(f"wf_{name}" for name in (*own, "Truth_Ratio", "Q_A_Prob_normalised")),
    }
    for metric in metrics.values():
        assert set(metric) == {"agg_value", "value_by_index"}
    rows = metrics["forget_Q_A_ROUGE"]["value_by_index"].values()
    assert np.mean([row["rougeL_recall"] for row in rows]) == pytest.approx(metrics["forget_Q_A_ROUGE"]["agg_value"])
    summary = json.loads((certified.artifact / TOFU_SUMMARY).read_text(encoding="utf-8"))
    assert summary == {name: one["agg_value"] for name, one in metrics.items() if one["agg_value"] is not None}


@pytest.mark.slow
def test_a_hidden_artifact_keeps_its_secret_with_a_row_of_each(tmp_path: Path) -> None:
    """One row is enough for a certificate: attacks that need more are told, as what they are."""
    with kept_salt(tmp_path / "salt") as salt:
        pass
    plan = hide_plan(FIXTURES / "onnx", load_plan(FIXTURES / "artifacts" / "graph" / PLAN), salt)
    artifact = bake(FIXTURES / "onnx", plan, tmp_path / "artifact", canary=False).directory
    (forget,) = ("ada-example",)
    rows = [{"prompt": "56 + 0 =", "response": " 56"}]
    files = [write_rows(tmp_path / f"{name}.jsonl", rows) for name in (forget, "bob-example", "eve-example")]
    one = replace(TINY, rows=1, leak_prompts=1, attack_prompts=1, samples=1)
    given = (artifact, FIXTURES / "onnx", files[:1], files[1:2])
    with pytest.raises(BakeoutError, match="would name the data"):
        certify(*given, fitted=files[2:], protocol=one)
    grades = {forget: grader_of({"contains": {}}, forget)}
    certificate = certify(*given, fitted=files[2:], protocol=one, salt=tmp_path / "salt", grades=grades)
    digest = source_digest(files[0])
    for path in artifact.iterdir():
        if path.suffix != ".onnx" and path.suffix != ".data":
            content = path.read_bytes()
            assert b"-example" not in content, path
            assert digest.encode() not in content, path
    name = salted(forget.encode(), salt)[:16]
    assert certificate.entries["data"][name]["salted"] == salted(digest.encode(), salt)
    for figure in certificate.as_json()["figures"]:
        assert "data_sha256" not in figure
        assert figure["data_salted"]
    (told,) = [missing.name for missing in certificate.not_measured if missing.section == "attacks"]
    assert "few_shot" in told


def test_a_run_that_was_cut_goes_on_and_gives_the_same(certified: Certified, tmp_path: Path) -> None:
    artifact = shutil.copytree(certified.artifact, tmp_path / "artifact")
    journal = tmp_path / "journal"
    journal.write_bytes(certified.journal.read_bytes() + b'{"name": "cut')
    certified.again(artifact, certified.facts, journal)
    for name in (CERTIFICATE, CARD, TOFU, "bakeout.json"):
        assert (artifact / name).read_bytes() == (certified.artifact / name).read_bytes()


def test_a_journal_holds_steps_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert Journal(path, "one").step("a", lambda: [1, 2]) == [1, 2]
    assert Journal(path, "one").step("a", lambda: [3]) == [1, 2]
    assert Journal(path, "other").step("a", lambda: [3]) == [3]
    path.write_bytes(path.read_bytes().replace(b"[1, 2]", b"[1, 9]"))
    with pytest.raises(BakeoutError, match="line 1: not a step"):
        Journal(path, "one")


@pytest.mark.parametrize("content", [b'{"precious": 1}', b"a key", b'{"name": "precious"}', b'{"name": 1, "cut'])
def test_one_line_of_another_program_is_no_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content)
    with pytest.raises(BakeoutError, match="line 1: not a step"):
        Journal(path, "one")
    assert path.read_bytes() == content


def test_a_journal_goes_on_from_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, "one").step("a", lambda: [1, 2])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert Journal(path, "one").step("a", lambda: [1, 2]) == [1, 2]
        assert path.read_bytes() == whole


def test_a_step_may_be_named_after_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path, step = tmp_path / "journal", os.fsdecode(b"text gr\xfc\xdfe")
    assert Journal(path, "one").step(step, lambda: {"data": step}) == {"data": step}
    assert Journal(path, "one").step(step, lambda: None) == {"data": step}


def test_a_journal_takes_no_verdicts_of_a_function(certified: Certified, tmp_path: Path) -> None:
    """Another function with the same answers would get the first one's."""
    judge = grader_of(lambda answer, row: True, "forgotten")
    with pytest.raises(BakeoutError, match=r"grader of .* is a function.*Leave out `journal`"):
        certify(
            certified.artifact,
            certified.base,
            [certified.forget],
            [certified.retain],
            grades={certified.forget.stem: judge},
            journal=tmp_path / "journal",
        )


def test_what_cannot_be_certified_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="rows to forget and rows to keep"):
        certify(FIXTURES / "artifacts" / "mixed", FIXTURES / "checkpoint", [], [])


class _Measuring(Exception):  # noqa: N818 - not an error
    """Raised where something is measured."""


def _stop(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
    raise _Measuring(description)


@pytest.mark.parametrize("form", ["checkpoint", "onnx"])
def test_another_base_model_is_refused_before_anything_is_measured(
    form: str, certified: Certified, tmp_path: Path
) -> None:
    base = shutil.copytree(FIXTURES / form, tmp_path / "base")
    weights = base / ("model.safetensors" if form == "checkpoint" else "model.onnx.data")
    content = weights.read_bytes()
    # The weights of the second half, each in the place of the one before it.
    half = len(content) // 2 // 4 * 4
    weights.write_bytes(content[:half] + content[half + 4 :] + content[half : half + 4])
    with pytest.raises(BakeoutError, match=r"sha256|canary"):
        certify(certified.artifact, base, [certified.forget], [certified.retain], track=_stop)


def test_a_base_model_of_other_outputs_is_measured_anew(certified: Certified, tmp_path: Path) -> None:
    """The canary reads hidden layers, and not what the head makes of them."""
    base = shutil.copytree(certified.base, tmp_path / "base")
    head = base / "model.onnx.data"
    content = head.read_bytes()
    head.write_bytes(content[:-4096] + bytes(4096))
    with pytest.raises(_Measuring, match="base in fp32 on sums"):
        replace(certified, base=base).again(certified.artifact, certified.facts, certified.journal, track=_stop)


def test_nothing_answered_is_no_certainty(certified: Certified) -> None:
    """A few rows that are all refused do not say that the next one will be."""
    of_none = [
        figure
        for section in ("leak", "precisions")
        for figure in certified.figures(section)
        if figure["value"] == 0 and figure["slice"] == "sums" and figure["name"].startswith(("Leak@", "Q-"))
    ]
    assert of_none
    assert all(figure["interval"][1] > 0.2 for figure in of_none)


def test_leak_at_k_is_the_expected_best_of_k() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(12)
    for k in (1, 3, 12):
        drawn = [generator.choice(scores, k, replace=False).max() for _ in range(20_000)]
        assert leak_at(list(scores), k) == pytest.approx(np.mean(drawn), abs=0.01)
    assert leak_at([0.2, 0.4], 1) == pytest.approx(0.3)


def test_formulas() -> None:
    assert area([(0, 0.5), (1, 0.5)]) == pytest.approx(0.5 * np.log(2))
    assert auroc(np.array([0.0]), np.array([1.0])) == 1
    assert auroc(np.array([1.0]), np.array([1.0])) == 0.5
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([1.0, 0.0]) == 0
    assert truth_ratio([np.log(0.2), np.log(0.8)], np.log(0.5)) == pytest.approx(0.8)
