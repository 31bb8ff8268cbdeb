"""Tasks of lm-evaluation-harness are files from elsewhere: what they name does not run unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bakeout.export.evaluation.harness import run_tasks
from bakeout.export.evaluation.task_files import require_no_code
from bakeout.export.recipes.evaluation import Tasks
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError

from tests.recipe_files import write_rows

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    directory.mkdir()
    marker = tmp_path / "ran"
    (directory / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef text(row): return row['question']\n")
    return directory


def _task(directory: Path, **entries: object) -> str:
    data = write_rows(directory / "rows.jsonl", [{"question": "one", "answer": "two"}])
    return "\n".join(
        f"{key}: {value if str(value).startswith('!') else json.dumps(value)}"
        for key, value in {
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 2},
            "metric_list": [{"metric": "exact_match"}],
            **entries,
        }.items()
    )


def test_a_function_of_a_task_runs_only_where_it_is_asked_for(
    directory: Path, llama_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (directory / "own.yaml").write_text(_task(directory, doc_to_text="!function code.text"))
    runner = Runner(llama_export)
    with pytest.raises(BakeoutError, match="names Python code to run"):
        run_tasks(runner, "model", Tasks(names=("own",), directory=directory))
    assert not (tmp_path / "ran").exists()
    assert run_tasks(runner, "model", Tasks(names=("own",), directory=directory, code=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, {b: !function code.text}]", "names Python code"),
        ("a: !!python/name:os.system", "names Python code"),
        ("a: !<!function> code.text", "names Python code"),
        ("%TAG ! tag:x,2000:\n--- {a: !function code.text}", "names Python code"),
        ("include: ../other.yaml", "lies outside"),
        ("include: inner", "names Python code"),
        ("a: [" * 100_000, "cannot be read"),
        ("a: \x00", "cannot be read"),
        ("include: gone.yaml", "cannot be read"),
    ],
)
def test_what_can_hide_code_is_refused(directory: Path, text: str, words: str) -> None:
    (directory / "inner").write_text("a: !function code.text")
    (directory / "own.yaml").write_text(text)
    with pytest.raises(BakeoutError, match=words):
        require_no_code(directory)


def test_plain_tasks_pass(directory: Path) -> None:
    (directory / "common.yml").write_text("a: &a [1, 2]\nb: [*a, *a]")
    (directory / "own.yaml").write_text("include: common.yml\ntask: own\n")
    require_no_code(directory)


def test_a_template_of_a_task_reaches_no_code(
    directory: Path, llama_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jinja2.exceptions import SecurityError

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    escape = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "ran") + "') }}"
    (directory / "own.yaml").write_text(_task(directory, doc_to_text=escape))
    with pytest.raises((BakeoutError, SecurityError)):
        run_tasks(Runner(llama_export), "model", Tasks(names=("own",), directory=directory))
    assert not (tmp_path / "ran").exists()
