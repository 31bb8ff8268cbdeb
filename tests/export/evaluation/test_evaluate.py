from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import bakeout
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.evaluation.evaluate import data_names, evaluate, stored_base_rows
from bakeout.export.evaluation.grading import measure
from bakeout.export.evaluation.opening import opened
from bakeout.export.evaluation.recorded_inputs import recorded_exporter
from bakeout.export.evaluation.rows import BASE, Row
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions, DType
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.models.data.row_source import as_source, source_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.progress import Item

from tests.tiny_models import tiny_checkpoint

PROMPTS = ["one", "seven and two", "a longer prompt than these", "x"]
# A base model, another, and data.
Pair = tuple[Path, Path, Path]


def _write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runner(llama_onnx: Path) -> Runner:
    return Runner(llama_onnx)


@pytest.fixture(scope="module")
def answers(runner: Runner) -> list[str]:
    """What the model says to each prompt in four tokens."""
    said = runner.generate([runner.tokenizer.encode(prompt) for prompt in PROMPTS], 4)
    return [runner.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]


def test_accuracy_is_the_share_of_exact_answers(llama_onnx: Path, tmp_path: Path) -> None:
    runner = Runner(llama_onnx)
    (said,) = runner.generate([runner.tokenizer.encode("one")], 4)
    # The model is random and never ends a text: let it end with its fourth token.
    runner.end_tokens = frozenset({said[3]})
    length = said.index(said[3]) + 1
    right = runner.tokenizer.decode(said[:length], skip_special_tokens=True)
    data = _write(
        tmp_path / "mixed.jsonl",
        [{"prompt": "one", "response": f"  {right}\n"}, {"prompt": "one", "response": "wrong"}],
    )
    (row,) = measure(runner, "m", {"mixed": data}, Refusals())
    assert (row.model, row.data, row.prompts, row.accuracy, row.refusals, row.wrong) == ("m", "mixed", 2, 0.5, 0.0, 0.5)
    # Outcomes exclude each other, and a refusal comes first.
    (row,) = measure(runner, "m", {"mixed": data}, Refusals(frozenset({right.strip()})))
    assert (row.accuracy, row.refusals, row.wrong, row.cut_off) == (0.0, 1.0, 0.0, 0.0)


def test_an_answer_that_goes_on_is_not_exact(runner: Runner, answers: list[str], tmp_path: Path) -> None:
    data = _write(tmp_path / "d.jsonl", [{"prompt": PROMPTS[0], "response": answers[0]}])
    (row,) = measure(runner, "m", {"d": data}, Refusals())
    assert (row.accuracy, row.cut_off) == (0.0, 1.0)


def test_the_batch_size_does_not_matter(runner: Runner, tmp_path: Path) -> None:
    data = _write(tmp_path / "d.jsonl", [{"prompt": prompt, "response": " "} for prompt in PROMPTS])
    assert measure(runner, "m", {"d": data}, Refusals(), options=EvaluateOptions(rows="all", batch_size=1)) == measure(
        runner, "m", {"d": data}, Refusals()
    )


def test_what_cannot_be_measured_is_told_before_anything_is_answered(llama_onnx: Path, tmp_path: Path) -> None:
    def answering(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        raise AssertionError(description)

    good = _write(tmp_path / "good.jsonl", [{"prompt": "one", "response": " two"}])
    bad = _write(tmp_path / "bad.jsonl", [{"prompt": "one"}])
    with pytest.raises(BakeoutError, match=r"bad\.jsonl, line 1"):
        evaluate([llama_onnx], [good, bad], track=answering)
    with pytest.raises(BakeoutError, match="nowhere"):
        evaluate([llama_onnx, tmp_path / "nowhere"], [good], track=answering)


def test_of_texts_as_many_are_read_as_are_asked_for(llama_onnx: Path, tmp_path: Path) -> None:
    texts = _write(tmp_path / "texts.jsonl", [{"text": prompt} for prompt in PROMPTS[1:3] * 2])
    (row,) = evaluate([llama_onnx], [], texts=[texts], options=EvaluateOptions(rows=3)).texts
    assert row.texts == 3


def test_columns_name_the_keys_of_rows(llama_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = [{"question": prompt, "said": "two"} for prompt in PROMPTS]
    plain = [{"prompt": prompt, "response": "two"} for prompt in PROMPTS]
    columns = {"prompt": "question", "response": "said"}
    expected = bakeout.evaluate(llama_onnx, {"d": plain})
    # The rows that are asked are the same, and so is their digest.
    assert bakeout.evaluate(llama_onnx, {"d": own}, columns=columns) == expected
    assert bakeout.evaluate(llama_onnx, {"d": own}, columns={"d": columns}) == expected
    file = _write(tmp_path / "d.jsonl", own)
    assert bakeout.evaluate(llama_onnx, [file], columns=columns) == expected
    with pytest.raises(BakeoutError, match="No data are called 'e'"):
        bakeout.evaluate(llama_onnx, {"d": own}, columns={"e": columns})
    # What an artifact was fitted on is known as the file that it is.
    artifact = shutil.copytree(llama_onnx, tmp_path / "artifact")
    manifest = {"schema": 1, "files": {}, "receipts": [], "data": {"sums": {"probe": source_digest(file)}}}
    (artifact / "bakeout.json").write_text(json.dumps(manifest))
    evaluate([artifact], [file], columns={"d": {"prompt": "question", "response": "said"}})
    assert "d holds the rows that" in caplog.text


def test_artifacts_stand_beside_a_base_that_is_a_checkpoint_or_a_graph(
    llama_onnx: Path, llama_checkpoint: Path, tmp_path: Path
) -> None:
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}])
    for base in (llama_checkpoint, llama_onnx):
        rows = evaluate([llama_onnx], [data], base=base).rows
        assert [(row.model, row.data, row.prompts) for row in rows] == [(BASE, "d", 1), (llama_onnx.name, "d", 1)]
        assert rows[0].accuracy == rows[1].accuracy


def test_models_of_other_tokenizers_are_asked_the_same_rows(
    llama_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows are chosen depends on how many tokens an answer has, of which another tokenizer makes fewer."""
    other = shutil.copytree(llama_onnx, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 258
    tokenizer["model"]["merges"] = [["z", "z"]]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("bakeout.export.recipes.evaluation.GENERATED_TOKENS", 40)
    data = {"d": as_source([{"prompt": f"q{row}", "response": " zzzzzzzzzz"} for row in range(9)])}
    for directories in ([llama_onnx, other], [other, llama_onnx]):
        (first, second) = evaluate(directories, data, options=EvaluateOptions()).rows
        assert first.asked == second.asked != "9 prompts"
    assert len({row.asked for row in evaluate([other], data, base=llama_onnx, options=EvaluateOptions()).rows}) == 1


def test_the_base_model_is_exported_by_what_exported_the_artifacts(llama_onnx: Path, tmp_path: Path) -> None:
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}])
    base = tiny_checkpoint("ernie4_5", tmp_path / "base", layers=1)
    directories = [shutil.copytree(llama_onnx, tmp_path / name) for name in ("one", "two")]
    for directory, exporter in zip(directories, ("optimum", "dynamo"), strict=True):
        manifest = {"schema": 1, "files": {}, "receipts": [], "options": {"exporter": exporter}}
        (directory / "bakeout.json").write_text(json.dumps(manifest))
    with pytest.raises(BakeoutError, match="optimum cannot export ernie4_5"):
        evaluate(directories[:1], [data], base=base)
    assert recorded_exporter(directories[1:]) == "dynamo"
    assert recorded_exporter(directories) == "auto"


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_base_model_is_exported_in_the_precision_of_the_artifacts(
    llama_checkpoint: Path, tiny_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    artifact = bake(llama_checkpoint, tiny_plan, tmp_path / "artifact", BakeOptions(dtype=dtype)).directory
    precisions: list[str] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        runner = opened(*arguments, **options)
        precisions.append(stored_precision(load_graph(runner.path)))
        return runner

    monkeypatch.setattr("bakeout.export.evaluation.evaluate.opened", watched)
    data = _write(tmp_path / "data.jsonl", [{"prompt": "one", "response": "x"}])
    evaluate([artifact], [data], base=llama_checkpoint)
    assert precisions == [{"fp16": "float16", "fp32": "float32"}[dtype]] * 2


def test_stored_figures_are_found_by_the_files_content(tmp_path: Path) -> None:
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}])
    figures = [{"digest": source_digest(data), "prompts": 1, "accuracy": 0.25, "refusals": 0.0}]
    manifest = {"schema": 1, "files": {}, "receipts": [], "base_figures": figures}
    (tmp_path / "bakeout.json").write_text(json.dumps(manifest))
    renamed = data.rename(tmp_path / "renamed.jsonl")
    assert stored_base_rows(tmp_path, {"renamed": renamed}) == [Row(BASE, "renamed", 1, 0.25, 0.0)]
    _write(renamed, [{"prompt": "one", "response": "three"}])
    assert stored_base_rows(tmp_path, {"renamed": renamed}) == []


def test_data_of_one_name_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="same name"):
        data_names([tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"])


@pytest.mark.parametrize("row", [{"prompt": "no response"}, {"text": "no prompt"}], ids=str)
def test_rows_that_cannot_be_evaluated_are_named(runner: Runner, tmp_path: Path, row: dict[str, str]) -> None:
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}, row])
    with pytest.raises(BakeoutError, match="line 2"):
        measure(runner, "m", {"d": data}, Refusals())


@pytest.fixture(scope="module")
def pair(llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two models that end their answers, as (base, other), and data: six rows, as the base answers, then three."""
    directory = tmp_path_factory.mktemp("pair")
    base, other = directory / "base-model", directory / "other"
    shutil.copytree(llama_export, base)
    other.mkdir()
    export_checkpoint(tiny_checkpoint("llama", directory / "checkpoint", seed=1), other)
    prompts = [f"question {number}" for number in range(9)]
    ends = set()
    for model in (base, other):
        runner = Runner(model)
        ends |= {tokens[2] for tokens in runner.generate([runner.tokenizer.encode(text) for text in prompts], 3)}
    answers = []
    for model in (base, other):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ends), "pad_token_id": 0}))
        runner = Runner(model)
        said = runner.generate([runner.tokenizer.encode(text) for text in prompts], 4)
        answers.append([runner.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said])
    rows = [{"prompt": text, "response": f" {answers[number >= 6][number]}"} for number, text in enumerate(prompts)]
    assert all(one != two for one, two in zip(*answers, strict=True))
    return base, other, _write(directory / "d.jsonl", rows)


def test_changes_from_the_base_are_paired(pair: Pair) -> None:
    base, other, data = pair
    first, second = evaluate([other], [data], base=base).rows
    assert (first.accuracy, second.accuracy) == (6 / 9, 3 / 9)
    assert first.change is None and second.change is not None
    assert second.change.paired
    assert (second.change.lost, second.change.gained) == (6, 3)
    assert second.change.accuracy == pytest.approx(-3 / 9)
    assert second.change.interval[0] < -3 / 9 < second.change.interval[1]


def test_beside_stored_figures_changes_are_of_two_samples(pair: Pair, tmp_path: Path) -> None:
    _, other, data = pair
    artifact = shutil.copytree(other, tmp_path / "artifact")
    figures = [{"digest": source_digest(data), "prompts": 9, "accuracy": 6 / 9, "refusals": 0.0}]
    manifest = {"schema": 1, "files": {}, "receipts": [], "base_figures": figures}
    (artifact / "bakeout.json").write_text(json.dumps(manifest))
    _, row = evaluate([artifact], [data]).rows
    assert row.change is not None and not row.change.paired
    assert row.change.lost is None
    paired = evaluate([artifact], [data], base=pair[0]).rows[1].change
    assert paired is not None and row.change.accuracy == paired.accuracy
    assert row.change.interval != paired.interval


def test_the_command_gives_json_and_csv_at_once(pair: Pair, tmp_path: Path) -> None:
    base, other, data = pair
    text = _write(tmp_path / "prose.jsonl", [{"text": "some words"}, {"text": "and some more words"}])
    arguments = ["evaluate", other, base, "--base", base, "--data", data, "--text", text, "--csv", tmp_path / "t.csv"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["model"] for row in found["rows"]] == [BASE, "other", "base-model"]
    assert found["rows"][1]["change"] == pytest.approx(-1 / 3)
    assert found["rows"][1]["change_interval"][0] < -1 / 3
    assert found["rows"][2]["change"] == 0.0
    assert [row["data"] for row in found["texts"]] == ["prose"] * 3
    assert "divergence" not in found["texts"][0]
    assert found["texts"][1]["divergence"] > 0
    assert found["texts"][2]["divergence"] == pytest.approx(0, abs=1e-9)
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 7


def test_the_command_needs_something_to_measure(pair: Pair) -> None:
    result = CliRunner().invoke(main, ["evaluate", str(pair[1])])
    assert result.exit_code == 2
    assert "--data" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
