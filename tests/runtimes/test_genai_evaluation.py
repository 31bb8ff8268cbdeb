"""An evaluation under onnxruntime-genai: the outcomes of our loop, answers that are kept, and what it cannot read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.evaluation.evaluate import evaluate
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.models.errors import BakeoutError
from bakeout.models.skills.generator import examples, write_jsonl

from tests.runtimes.served import ASKED, KEPT, REFUSED, Served

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

ROWS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Questions of every skill, of different lengths."""
    paths = [tmp_path_factory.mktemp("rows") / f"{skill}.jsonl" for skill in ASKED]
    for path in paths:
        write_jsonl(examples(path.stem, "test", ROWS), path)
    return paths


def _evaluated(served: Served, data: list[Path], **options: Any) -> list[Mapping[str, Any]]:
    options = {"rows": "all", "max_new_tokens": 12, "batch_size": 5, **options}
    evaluation = evaluate([served.artifact], data, base=served.base, options=EvaluateOptions(**options))
    return list(evaluation.as_json()["rows"])


def test_the_outcomes_are_those_of_our_loop(served: Served, data: list[Path]) -> None:
    """Of the base too, whose export has no configuration of genai's."""
    rows = _evaluated(served, data, runtime="genai")
    assert rows == _evaluated(served, data)
    refusals = {(row["model"], row["data"]): row["refusals"] for row in rows}
    assert refusals["artifact", REFUSED] == 1
    assert refusals["artifact", KEPT] == refusals["base", REFUSED] == 0


def test_answers_are_kept_for_the_runtime_that_gave_them(
    served: Served, data: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answers.jsonl"
    rows = _evaluated(served, data, runtime="genai", answers=path)
    lines = path.read_text().splitlines()
    assert len(lines) == 2 * len(data) * ROWS
    # Cut off in the middle of a line.
    path.write_text("\n".join([*lines[:-10], lines[-10][:20]]))
    with caplog.at_level("INFO", logger="bakeout"):
        assert _evaluated(served, data, runtime="genai", answers=path) == rows
    assert f"{ROWS - 10} of {ROWS} answers are in {path}" in caplog.text
    assert sorted(path.read_text().splitlines()) == sorted(lines)
    _evaluated(served, data, answers=path)
    assert len(path.read_text().splitlines()) == 2 * len(lines)


def test_a_command(served: Served, data: list[Path]) -> None:
    (math,) = [path for path in data if path.stem == REFUSED]
    arguments = ["evaluate", str(served.artifact), "--data", str(math), "--runtime", "genai", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["refusals"] == 1


def test_logits_cannot_be_read(served: Served, data: list[Path]) -> None:
    arguments = ["evaluate", str(served.artifact), "--data", str(data[0]), "--runtime", "genai"]
    for more, reader in (
        (["--grade", "likelihood"], "the grader `likelihood`"),
        (["--text", str(data[1])], "the perplexity of texts"),
        (["--tasks", "mmlu"], "a task"),
    ):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 1
        said = " ".join(result.stderr.split())
        assert f"onnxruntime-genai shows no logits of a text that it is given, and {reader} reads them." in said


def test_a_directory_without_a_configuration_is_refused(served: Served, data: list[Path], tmp_path: Path) -> None:
    for name in ("model.onnx", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((served.base / name).read_bytes())
    with pytest.raises(BakeoutError, match=r"neither genai_config\.json nor config\.json.*genai cannot run it"):
        evaluate([tmp_path], data, options=EvaluateOptions(runtime="genai"))
