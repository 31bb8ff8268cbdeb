"""Answers while they are generated: outcomes, limits, drawing, and a file from which an evaluation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.evaluation.answering.answer_file import AnswerFile
from bakeout.export.evaluation.answering.questions import choose_rows
from bakeout.export.evaluation.graders.registry import grader_of
from bakeout.export.evaluation.grading import grade
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.refusals import Refusals, answer_text
from bakeout.export.running.runner import Runner
from bakeout.models.data.row_source import as_source
from bakeout.models.errors import BakeoutError

ROWS = [{"prompt": f"question {number}", "response": "1"} for number in range(7)]


@pytest.fixture(scope="module")
def runner(llama_onnx: Path) -> Runner:
    return Runner(llama_onnx)


def test_four_outcomes_exclude_each_other_and_add_up(runner: Runner) -> None:
    prompts = [runner.tokenizer.encode(row["prompt"]) for row in ROWS]
    answers = runner.generate(prompts, 3)
    texts = [runner.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answers]
    by = grader_of(lambda answer, row: answer == texts[0], "d")
    options = EvaluateOptions(max_new_tokens=3)
    graded = grade(runner, as_source(ROWS), Refusals(frozenset({texts[1]})), by=by, options=options)
    ended = [tokens[-1] in runner.end_tokens for tokens in answers]
    assert graded.refused.tolist() == [text == texts[1] for text in texts]
    assert graded.correct.tolist() == [text == texts[0] != texts[1] for text in texts]
    row = graded.row("m", "d")
    assert row.wrong is not None
    assert row.cut_off is not None
    assert row.accuracy + row.refusals + row.cut_off + row.wrong == pytest.approx(1)
    others = [not end for end, text in zip(ended, texts, strict=True) if text not in texts[:2]]
    assert graded.cut_off.sum() == sum(others)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_does_not_cut_a_refusal_off(runner: Runner, limit: int) -> None:
    prompts = [runner.tokenizer.encode(row["prompt"]) for row in ROWS]
    texts = [answer_text(runner.tokenizer, tokens) for tokens in runner.generate(prompts, 3)]
    refusals = Refusals(frozenset({texts[1]}))
    assert refusals.longest(runner.tokenizer) == 3
    graded = grade(runner, as_source(ROWS), refusals, options=EvaluateOptions(max_new_tokens=limit))
    assert graded.refused.tolist() == [text == texts[1] for text in texts]


def test_some_rows_are_spread_over_all(runner: Runner) -> None:
    chosen = choose_rows(as_source(ROWS), 3)
    assert chosen.available == 7
    graded = grade(runner, as_source(ROWS), Refusals(), options=EvaluateOptions(rows=3))
    assert graded.row("m", "d").asked == "3 of 7 prompts"
    assert choose_rows(as_source(ROWS), 7).available == 7


@pytest.mark.parametrize(("length", "most"), [(256, 100), (16, 1600), (None, 300), (100_000, 1)])
def test_a_build_measures_as_many_rows_as_take_minutes(length: int | None, most: int) -> None:
    assert EvaluateOptions().most_rows(length) == most
    assert EvaluateOptions(rows="all").most_rows(length) is None
    assert EvaluateOptions(rows=5).most_rows(length) == 5


def test_drawn_answers_depend_on_the_seed_alone(runner: Runner, tmp_path: Path) -> None:
    def answers(**options: Any) -> list[str]:
        seen: list[str] = []

        def note(answer: str, row: Mapping[str, Any]) -> bool:
            seen.append(answer)
            return True

        by = grader_of(note, "d")
        grade(runner, as_source(ROWS), Refusals(), by=by, options=EvaluateOptions(max_new_tokens=6, **options))
        return seen

    drawn = answers(temperature=1.5, seed=1)
    assert drawn == answers(temperature=1.5, seed=1, batch_size=2)
    assert drawn != answers(temperature=1.5, seed=2)
    assert answers() != drawn
    # An evaluation that was cut goes on with the same draws.
    file = tmp_path / "answers.jsonl"
    assert answers(temperature=1.5, seed=1, answers=file) == drawn
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert answers(temperature=1.5, seed=1, answers=file) == drawn
    assert len(file.read_bytes().splitlines()) == len(ROWS)


def test_an_evaluation_that_was_cut_goes_on(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "answers.jsonl"
    options = EvaluateOptions(max_new_tokens=6, batch_size=2, answers=file)
    by = grader_of("number", "d")

    def cut(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
        for number, item in enumerate(iterable):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        grade(runner, as_source(ROWS), Refusals(), by=by, options=options, track=cut)
    known = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(known) == 3
    asked: list[int] = []
    each_answer = Runner.each_answer

    def counted(self: Runner, *arguments: Any, only: Iterable[int], **settings: Any) -> Any:
        asked.extend(only)
        return each_answer(self, *arguments, only=list(only), **settings)

    monkeypatch.setattr(Runner, "each_answer", counted)
    graded = grade(runner, as_source(ROWS), Refusals(), by=by, options=options)
    assert len(asked) == len(ROWS) - 3
    monkeypatch.undo()
    fresh = grade(runner, as_source(ROWS), Refusals(), by=by, options=EvaluateOptions(max_new_tokens=6))
    assert graded.correct.tolist() == fresh.correct.tolist()
    assert {line["answer"] for line in known} <= {
        runner.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        for tokens in runner.generate([runner.tokenizer.encode(row["prompt"]) for row in ROWS], 6)
    }


def test_answers_of_another_length_are_generated_anew(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    by = grader_of("number", "d")
    for length in (3, 4):
        options = EvaluateOptions(max_new_tokens=length, answers=file)
        grade(runner, as_source(ROWS), Refusals(), by=by, options=options)
    assert len(file.read_text().splitlines()) == 2 * len(ROWS)


def test_an_answer_that_was_changed_is_noticed(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    by, options = grader_of("number", "d"), EvaluateOptions(max_new_tokens=3, answers=file)
    grade(runner, as_source(ROWS), Refusals(), by=by, options=options)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["tokens"] = lines[0]["tokens"] + [5]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BakeoutError, match="line 2: not an answer"):
        grade(runner, as_source(ROWS), Refusals(), by=by, options=options)


@pytest.mark.parametrize("content", [b"something else\n", b'{"key": 1, "tokens": []}\n', b'{"key": "k"}\n', b"[]\n"])
def test_other_files_are_not_written_to(runner: Runner, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(BakeoutError, match="line 1: not an answer"):
        grade(runner, as_source(ROWS), Refusals(), options=EvaluateOptions(answers=file))
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b'{"precious": 1}', b"a key", b'{"key": "precious"}', b'{"key": 1, "cut'])
def test_one_line_of_another_program_is_not_taken_for_a_cut_one(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.json"
    file.write_bytes(content)
    with pytest.raises(BakeoutError, match="line 1: not an answer"):
        AnswerFile(file)
    assert file.read_bytes() == content
    AnswerFile(tmp_path / "answers").add("k", [5], {})
    whole = (tmp_path / "answers").read_bytes()
    (tmp_path / "answers").write_bytes(whole + content)
    with pytest.raises(BakeoutError, match="line 2: not an answer"):
        AnswerFile(tmp_path / "answers")
    assert (tmp_path / "answers").read_bytes() == whole + content


def test_a_file_of_answers_goes_on_from_every_cut(tmp_path: Path) -> None:
    file = tmp_path / "answers"
    AnswerFile(file).add("k", [5], {"what": "d", "answer": "f\u00fcnf"})
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole + whole[:length])
        assert AnswerFile(file).answer("k") == [5]
        assert file.read_bytes() == whole


def test_answers_are_kept_of_data_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    described = {"what": os.fsdecode(b"m on gr\xfc\xdfe"), "answer": "f\u00fcnf"}
    AnswerFile(tmp_path / "answers").add("k", [5], described)
    assert AnswerFile(tmp_path / "answers").answer("k") == [5]
    # As an earlier version wrote it.
    earlier = json.dumps(
        json.loads((tmp_path / "answers").read_bytes()) | {"what": "gr\u00fc\u00dfe"}, ensure_ascii=False
    )
    (tmp_path / "answers").write_text(earlier + "\n", encoding="utf-8")
    assert AnswerFile(tmp_path / "answers").answer("k") == [5]


def test_a_file_of_answers_is_a_regular_one(runner: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BakeoutError):
            grade(runner, as_source(ROWS), Refusals(), options=EvaluateOptions(answers=path))


def test_the_command_names_graders_by_data(llama_onnx: Path, tmp_path: Path) -> None:
    for name in ("sums", "words"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = [f"--data={tmp_path / name}.jsonl" for name in ("sums", "words")]
    grades = ["--grade", "sums=number", "--grade", "{regex: {pattern: a}}"]
    command = ["evaluate", str(llama_onnx), *data, *grades, "--rows", "4", "--max-new-tokens", "5"]
    ran = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)["rows"]
    assert [(row["data"], row["grade"], row["prompts"], row["available"]) for row in rows] == [
        ("sums", "number", 4, 7),
        ("words", "regex", 4, 7),
    ]
    assert all(row["accuracy"] + row["refusals"] + row["wrong"] + row["cut_off"] == pytest.approx(1) for row in rows)
    shown = CliRunner().invoke(main, command, catch_exceptions=False).stdout
    assert "4 of 7" in shown
    assert "cut off" in shown
    for grader, message in {
        "others=number": "--grade names others",
        "nmber": "The grade of sums is no grader",
        "sums={": "is not YAML",
    }.items():
        refused = CliRunner().invoke(main, ["evaluate", str(llama_onnx), *data, "--grade", grader])
        assert refused.exit_code
        assert message in refused.stderr
