"""The real lm-evaluation-harness on tasks of our own, offline, against what torch and the Runner say themselves."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.evaluation.harness import run_tasks
from bakeout.export.recipes.evaluation import Tasks
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError

from tests.recipe_files import write_rows

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

QUESTIONS = ["one and one", "a b c", "what is it", "seven"]
CHOICES = [" two", " a longer one", " no"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Data sets are cached in a directory of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def tasks(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of each kind that the harness has: choices, text until a stop, and a whole text's likelihood."""
    directory = tmp_path_factory.mktemp("tasks")
    runner = Runner(llama_onnx)
    said = runner.generate([runner.tokenizer.encode(text) for text in QUESTIONS], 5)
    answers = [runner.tokenizer.decode(tokens) for tokens in said]
    # Half of the answers are the model's own.
    answers = [answer if number % 2 else "something else" for number, answer in enumerate(answers)]
    data = write_rows(
        directory / "questions.jsonl",
        [
            {"question": text, "choices": CHOICES, "right": number % 3, "answer": answer}
            for number, (text, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
        ],
    )
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    kinds: dict[str, dict[str, Any]] = {
        "own_choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{right}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "own_answers": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["never said"], "max_gen_toks": 5},
            "metric_list": [{"metric": "exact_match"}],
        },
        "own_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    for name, task in kinds.items():
        (directory / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}), encoding="utf-8")
    return directory


def _log_probability(model: Any, context: list[int], continuation: list[int]) -> float:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([context + continuation])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logits[len(context) - 1 + place, token]) for place, token in enumerate(continuation))


def test_choices_and_texts_have_the_likelihood_that_torch_gives(
    llama_onnx: Path, llama_checkpoint: Path, tasks: Path
) -> None:
    runner, model = Runner(llama_onnx), load_model(llama_checkpoint)
    rows = run_tasks(
        runner,
        "m",
        Tasks(
            names=(
                "own_choices",
                "own_text",
            ),
            directory=tasks,
        ),
    )
    tokenizer = runner.tokenizer
    end = tokenizer.eos_token_id
    assert end is not None
    right, total, size = 0, 0.0, 0
    for number, question in enumerate(QUESTIONS):
        context = tokenizer.encode(question)
        scores = [_log_probability(model, context, tokenizer.encode(choice)) for choice in CHOICES]
        right += scores.index(max(scores)) == number % 3
        total += _log_probability(model, [tokenizer.bos_token_id or end], context)
        size += len(question.encode())
    found = {(row.task, row.metric): row.value for row in rows}
    assert found["own_choices", "acc"] == right / len(QUESTIONS)
    assert found["own_text", "bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_answers_are_those_that_the_runner_gives(llama_onnx: Path, tasks: Path, batch_size: int) -> None:
    (row,) = run_tasks(Runner(llama_onnx), "m", Tasks(names=("own_answers",), directory=tasks), batch_size=batch_size)
    assert (row.model, row.task, row.metric, row.value) == ("m", "own_answers", "exact_match", 0.5)
    assert row.standard_error is not None


def test_text_ends_before_a_stop(llama_onnx: Path, tasks: Path, tmp_path: Path) -> None:
    runner = Runner(llama_onnx)
    (said,) = runner.generate([runner.tokenizer.encode(QUESTIONS[1])], 5)
    stop = runner.tokenizer.decode(said[2:3])
    directory = shutil.copytree(tasks, tmp_path / "tasks")
    task = json.loads((directory / "own_answers.yaml").read_text())
    before = runner.tokenizer.decode(said).split(stop)[0]
    data = write_rows(directory / "one.jsonl", [{"question": QUESTIONS[1], "answer": before}])
    task["dataset_kwargs"] = {"data_files": {"test": str(data)}}
    task["generation_kwargs"]["until"] = [stop]
    (directory / "own_answers.yaml").write_text(json.dumps(task))
    (row,) = run_tasks(runner, "m", Tasks(names=("own_answers",), directory=directory))
    assert row.value == 1.0


def test_the_command_puts_tasks_beside_the_rest(llama_onnx: Path, tasks: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", llama_onnx, "--base", llama_onnx, "--tasks", "own_choices, own_answers", "--limit", "2"]
    arguments += ["--task-directory", tasks, "--csv", tmp_path / "table.csv", "--json"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["tasks"]
    assert [(row["model"], row["task"]) for row in found] == [
        (model, task) for model in ("base", llama_onnx.name) for task in ("own_choices", "own_answers")
    ]
    assert "own_answers,exact_match" in (tmp_path / "table.csv").read_text()


def test_what_cannot_be_run_is_one_line(llama_onnx: Path, tasks: Path, tmp_path: Path) -> None:
    runner = Runner(llama_onnx)
    with pytest.raises(BakeoutError, match="nowhere"):
        run_tasks(runner, "m", Tasks(names=("own_choices",), directory=tmp_path / "nowhere"))
    (tmp_path / "lost.yaml").write_text(
        json.dumps({"task": "lost", "dataset_path": "json", "dataset_kwargs": {"data_files": "lost.jsonl"}})
    )
    with pytest.raises(BakeoutError, match="lost"):
        run_tasks(runner, "m", Tasks(names=("lost",), directory=tmp_path))


@pytest.mark.slow
def test_a_task_that_the_harness_does_not_know_is_one_line(llama_onnx: Path, tasks: Path) -> None:
    with pytest.raises(BakeoutError, match="did you mean 'own_choices'"):
        run_tasks(Runner(llama_onnx), "m", Tasks(names=("own_choice",), directory=tasks))


def test_without_the_harness_the_command_says_how_to_get_it(llama_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name == "lm_eval" or name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = CliRunner().invoke(main, ["evaluate", str(llama_onnx), "--tasks", "gsm8k"])
    assert result.exit_code == 1
    assert "bakeout[harness]" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
