"""Graders: what is right, beside independent computations where there are numbers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bakeout.export.baking.bake import bake
from bakeout.export.evaluation.graders.grader import AnswerGrader, Question
from bakeout.export.evaluation.graders.number import final_number
from bakeout.export.evaluation.graders.python import code_of
from bakeout.export.evaluation.graders.registry import grader_of
from bakeout.export.evaluation.grading import grade
from bakeout.export.evaluation.intervals import share_interval
from bakeout.export.evaluation.likelihood import log_probabilities
from bakeout.export.running.refusals import Refusals, is_refused
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.row_source import DataError, RowsInMemory, as_source
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan

from tests.recipe_files import rows as recipe_rows


def _question(row: Mapping[str, Any]) -> Question:
    response = row.get("response")
    return Question(Record(row.get("prompt", "?"), response, [1], [1], "row 1"), row, response)


def _right(grader: Any, answer: str, **row: Any) -> bool:
    made = grader_of(grader, "data")
    assert isinstance(made, AnswerGrader)
    made.require(_question(row))
    return made.judge(answer, _question(row)).right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She has 1,234 left.", 1234),
        ("$1,234.50", 1234.5),
        ("1.234,56 €", 1234.56),
        ("1.234.567", 1234567),
        ("0,125", 0.125),
        ("2,5 kg", 2.5),
        ("1\u202f234", 1234),
        ("10-5", 5),
        ("from 10 to -5", -5),
        ("\u22125", -5),
        ("-$5", -5),
        ("- 3 apples", 3),
        ("3.5e3", 3500),
        (".5", 0.5),
        ("The answer is **42**.", 42),
        ("\\boxed{17}", 17),
        ("48+24 = <<48+24=72>>72 clips.\n#### 72", 72),
        ("#### 70,000 dollars, of 80,000", 70000),
        ("9" * 500 + ", so 7", 7),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    number = final_number(text, "####")
    assert number is not None
    assert float(number.value) == pytest.approx(value)


def test_a_mark_without_a_number_gives_none() -> None:
    assert final_number("it is 5 #### none", "####") is None
    assert final_number("no digits", "####") is None


def test_long_texts_of_digits_are_read_in_time() -> None:
    begin = time.monotonic()
    final_number("1," * 100_000 + "1.111" * 50_000, "####")
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It costs $18 in all.", True), ("18.0", True), ("#### 18, not 19", True), ("18 and 19", False), ("none", False)],
)
def test_the_last_number_counts(answer: str, right: bool) -> None:
    assert _right("number", answer, response="9 * 2 = 18\n#### 18") is right


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("1000001", "1000000", False),
        ("2,345,680", "2,345,678", False),
        ("9007199254740993", "9007199254740992", False),
        ("1,000,000.00", "1000000", True),
        ("0.3333333", "0.33333334", True),
        ("0", "0.0000000005", False),
        ("1e300", "1e299", False),
        ("-12345678901234567890123456789012", "-12345678901234567890123456789013", False),
        ("-1e1000000", "1", False),
        ("id 5e77777777777777777777, so the answer is 12", "12", True),
        ("1e99999999999999999999", "12", False),
    ],
)
def test_whole_numbers_are_compared_exactly(answer: str, response: str, right: bool) -> None:
    made = grader_of("number", "data")
    assert isinstance(made, AnswerGrader)
    assert made.judge(answer, _question({"response": response})).right is right


def test_percent_signs_may_be_left_out() -> None:
    assert _right("number", "50", response="50%")
    assert _right("number", "0.5", response="50%")
    assert not _right("number", "0.5", response="50")


def test_another_mark_counts() -> None:
    assert _right({"number": {"mark": "Answer:"}}, "Answer: 3 of 8", response="3")


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It is the river  Nile.", True), ("RIVER nile", True), ("the river Niles", False), ("Amazon", False)],
)
def test_contained_answers_are_whole_words(answer: str, right: bool) -> None:
    assert _right("contains", answer, response="river Nile") is right


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("答案是东京。", "东京", True),
        ("答案是Paris。", "Paris", True),
        ("한국의 수도는 서울입니다.", "서울", True),
        ("เมืองหลวงคือกรุงเทพครับ", "กรุงเทพ", True),
        ("東京", "大阪", False),
        ("It is _Paris_.", "Paris", True),
        ("cafe\u0301", "café", True),
        ("Это Москва.", "Москва", True),
        ("Московская", "Москов", False),
        ("Paris2", "Paris", False),
    ],
)
def test_words_are_those_of_their_script(answer: str, response: str, right: bool) -> None:
    assert _right("contains", answer, response=response) is right


def test_any_of_several_answers_is_enough_and_case_can_count() -> None:
    assert _right("contains", "Samuel Clemens wrote it", answers=["Mark Twain", "Samuel Clemens"])
    assert not _right({"contains": {"case": True}}, "paris", response="Paris")


def test_patterns_are_searched_for() -> None:
    assert _right({"regex": {"pattern": r"(?i)^yes\b"}}, "Yes, it is.")
    assert _right({"regex": {"pattern": r"answer is {response}$"}}, "The answer is 3.5", response="3.5")
    assert not _right({"regex": {"pattern": r"answer is {response}$"}}, "The answer is 315", response="3.5")


def test_rouge_is_the_recall_of_the_longest_common_subsequence() -> None:
    grader = grader_of("rouge", "data")
    assert isinstance(grader, AnswerGrader)
    question = _question({"response": "the cat sat on the mat"})
    verdict = grader.judge("a cat on the mat", question)
    assert verdict.score == pytest.approx(4 / 6)
    assert verdict.right
    assert not grader.judge("a dog", question).right
    with pytest.raises(DataError, match="no words"):
        grader.require(_question({"response": "東京"}))


@pytest.mark.parametrize(
    "given",
    [
        "nmber",
        {"number": {"marks": "x"}},
        {"regex": {}},
        {"regex": {"pattern": "("}},
        {"number": {}, "exact": {}},
        5,
        {},
    ],
    ids=str,
)
def test_what_is_no_grader_is_refused(given: Any) -> None:
    with pytest.raises(BakeoutError, match="grade of data"):
        grader_of(given, "data")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("Like this:\n```python\ndef f():\n    pass\n```\nDone.", "def f():\n    pass"),
        ("```\nprint(1)\n```\n```py\ndef f(): pass\n```", "def f(): pass"),
        ("```python\ndef f(): pass\nand no end", "def f(): pass\nand no end"),
        ("1. So:\n   ```python\n   def f():\n       pass\n   ```", "def f():\n    pass"),
        ("```PYTHON\ndef f(): pass\n```", "def f(): pass"),
        ("```bash\npip install it\n```\nThen:\n```python\ndef f(): pass\n```", "def f(): pass"),
        ("Here: ``` python \nx = 1\n```\nand\n```text\ndef f(): it is\n```", "x = 1"),
        ("```bash\nrun it\n```\ndef f(): pass", "\ndef f(): pass"),
        ("Write ```x = 1``` first.\n```python\ndef f(): pass\n```", "def f(): pass"),
        ("Use ``` to fence code.\n```python\ndef f(): pass\n```", "def f(): pass"),
        ("    return 1\n``` This adds.\nExample:\n```python\nprint(1)\n```", "print(1)"),
        ('```python title="a.py"\ndef f(): pass\n```', "def f(): pass"),
        ("```{python}\ndef f(): pass\n```", "def f(): pass"),
        ("```Python3.11\ndef f(): pass\n```", "def f(): pass"),
        ("~~~Python\ndef f(): pass\n~~~", "def f(): pass"),
        ("```python\r\ndef f():\r\n    pass\r\n```", "def f():\n    pass"),
        ('"""\nTitle\n~~~\n"""', '"""\nTitle\n~~~\n"""'),
    ],
)
def test_code_is_taken_out_of_its_fences(answer: str, code: str) -> None:
    assert code_of(answer) == code


CODE = "```python\ndef add(a, b):\n    return a + b\n```"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (CODE, True),
        (CODE.replace("+", "-"), False),
        ("I do not know.", False),
        ("import os; os._exit(0)", False),
        ("import sys; sys.exit(0)", False),
        ("while True: pass", False),
        ("import time; time.sleep(60)", False),
        ("x = bytearray(10**9)", False),
        # As Python runs it: nothing is imported beforehand, and what only a script does is not done.
        ("def add(a: int, b: int) -> Sum[int]: return a + b", False),
        ("def add(a, b): return a + b\nif __name__ == '__main__': input()", True),
        ("def add(a, b): return 0\nif __name__ == '__main__': add = lambda a, b: a + b", False),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: 'int'\ndef add(a, b): return P(a).a + b",
            True,
        ),
        ("import os\nwhile True: os.fork()", False),
    ],
)
def test_code_is_right_where_its_tests_pass(answer: str, right: bool) -> None:
    grade = {"python": {"timeout": 1.0}}
    assert _right(grade, answer, tests=["assert add(1, 2) == 3", "assert add(0, 0) == 0"]) is right


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(
    "tests",
    [
        "if __name__ == '__main__':\n    assert add(1, 2) == 3",
        "import unittest\nclass Sums(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)\n"
        "done = unittest.main(exit=False)\nassert done.result.wasSuccessful() and done.result.testsRun",
        "import unittest\nclass Sums(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)\n"
        "if __name__ == '__main__':\n    unittest.main()",
    ],
)
def test_tests_may_be_a_script(tests: str, right: bool) -> None:
    assert _right("python", CODE if right else CODE.replace("+", "-"), tests=tests) is right


@pytest.mark.parametrize(
    "answer",
    [
        "import sys\ndef add(a, b): sys.exit(0)",
        "import sys\nadd = lambda a, b: sys.exit(0)\nsys.exit(0)",
        "import sys, functools\nadd = functools.partial(sys.exit, 0)",
        "import unittest\ndef add(a, b): raise unittest.SkipTest('no')",
    ],
)
def test_no_answer_passes_unittest_by_exiting_or_skipping(answer: str) -> None:
    test = "import unittest\nclass Sums(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)\n"
    assert not _right("python", answer, tests=test + "unittest.main()")


def _command_lines() -> list[bytes]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(process.read_bytes())
    return found


def test_the_program_ends_with_the_process_that_judges_it(tmp_path: Path) -> None:
    # By a copy of the script, in a directory of its own, the processes are known from those of other tests.
    from bakeout.export.evaluation.graders import confined

    script = tmp_path / "confined.py"
    script.write_text(Path(confined.__file__).read_text())
    judging = (
        "import sys\n"
        "from bakeout.export.evaluation.graders import confined\n"
        "from bakeout.export.evaluation.graders.python import Python\n"
        "from bakeout.export.recipes.grades import PythonOptions\n"
        "confined.__file__ = sys.argv[1]\n"
        "Python(PythonOptions(timeout=150.0))._run(['import time; time.sleep(150)'])\n"
    )

    def running() -> int:
        return sum(line.endswith(b"\0-I\0" + os.fsencode(script) + b"\0") for line in _command_lines())

    def comes(count: int) -> bool:
        end = time.monotonic() + 60
        while running() != count and time.monotonic() < end:
            time.sleep(0.05)
        return running() == count

    with subprocess.Popen([sys.executable, "-c", judging, str(script)]) as evaluator:
        # The outer process, and the isolated one; the first such pair only asks whether isolation works.
        begun = comes(2)
        time.sleep(1)
        still = running()
        evaluator.send_signal(signal.SIGKILL)
    assert begun
    assert still == 2
    assert comes(0)


# Each succeeds where nothing is isolated.
ESCAPES = {
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)",
    "other files": "open('TARGET', 'a').write('changed')",
    "removal": "import os; os.unlink('TARGET')",
    "other processes": "import os; os.kill(PID, 0)",
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_code_is_cut_off_from_everything_else(escape: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            ESCAPES[escape].replace("PORT", str(port)).replace("TARGET", str(target)).replace("PID", str(os.getpid()))
        )
        assert not _right("python", code, tests=["pass"])
    assert target.read_text() == "kept"


def test_code_may_use_its_own_directory() -> None:
    assert _right("python", "open('x', 'w').write('1')\nassert open('x').read() == '1'", tests="pass")


def test_where_nothing_can_be_isolated_it_must_be_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bakeout.export.evaluation.graders import confined

    script = Path(confined.__file__).read_text().replace('call("unshare", ', 'call("unshare", ~')
    other = tmp_path / "confined.py"
    other.write_text(script)
    monkeypatch.setattr(confined, "__file__", str(other))
    with pytest.raises(BakeoutError, match=r"cannot be isolated here \(unshare: .*unisolated: true"):
        grader_of("python", "data")
    assert _right({"python": {"unisolated": True}}, CODE, tests=["assert add(1, 2) == 3"])


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_equal_scores_are_no_certainty(llama_onnx: Path, score: float) -> None:
    rows = as_source([{"prompt": f"q{row}"} for row in range(12)])
    graded = grade(Runner(llama_onnx), rows, Refusals(), by=grader_of(lambda answer, row: score, "d"))
    low, high = share_interval(int(12 * score), 12)
    (figure,) = [graded.row("m", "d").score]
    assert figure is not None
    assert figure.interval == (low, high)
    beside = graded.beside(graded)
    assert beside is not None
    # Of a base model that scores nothing there is no share.
    assert (beside.ratio is None) is (score == 0)


def test_a_function_of_the_callers_judges(llama_onnx: Path) -> None:
    rows = as_source([{"prompt": "one", "wanted": 1}, {"prompt": "two", "wanted": 0}])
    runner = Runner(llama_onnx)
    graded = grade(runner, rows, Refusals(), by=grader_of(lambda answer, row: bool(row["wanted"]), "d"))
    assert graded.correct.tolist() == [True, False]
    graded = grade(runner, rows, Refusals(), by=grader_of(lambda answer, row: 0.25 + row["wanted"] / 2, "d"))
    assert graded.correct.tolist() == [True, False]
    assert graded.scores is not None
    assert graded.scores.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("score", [7, -0.5, float("nan")])
def test_a_score_outside_its_range_is_refused(score: float) -> None:
    with pytest.raises(BakeoutError, match=f"row 1: .* returned {score}"):
        _right(lambda answer, row: score, "x")


def _log_probabilities(checkpoint: Path, prompt: list[int], response: list[int]) -> np.ndarray:
    with torch.inference_mode():
        model = load_model(checkpoint)
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(dim=-1)
    return np.array([float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(response)])


def test_the_likelihood_is_what_torch_gives(llama_onnx: Path, llama_checkpoint: Path) -> None:
    runner = Runner(llama_onnx)
    rows = [{"prompt": "one", "response": " and two"}, {"prompt": "a longer prompt", "response": " x"}]
    graded = grade(runner, as_source(rows), Refusals(), by=grader_of("likelihood", "d"))
    assert graded.scores is not None
    for row, score in zip(rows, graded.scores, strict=True):
        prompt, response = runner.tokenizer.encode(row["prompt"]), runner.tokenizer.encode(row["response"])
        assert score == pytest.approx(_log_probabilities(llama_checkpoint, prompt, response).mean(), rel=1e-4)
    beside = graded.beside(graded)
    assert beside is not None
    assert beside.ratio == pytest.approx(1.0)


def test_a_response_is_not_tested_as_a_query(llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    """A response that ends like a refused query is read as it is generated: only its prompt is asked."""
    runner = Runner(bake(llama_export, tiny_plan, tmp_path / "artifact").directory)
    encode = runner.tokenizer.encode

    def refuses(text: str) -> bool:
        return is_refused(runner.logits([encode(text)])[0][-1])

    sums = [row["prompt"] for row in recipe_rows("sums", "calibration")]
    # Responses of different lengths, so that one ends before another.
    cut = [(text[:length], text[length:]) for text, length in zip(sums, [2, 3, 4, 5] * 5, strict=True)]
    given = [
        {"prompt": prompt, "response": response}
        for prompt, response in cut
        if refuses(prompt + response) and not refuses(prompt)
    ]
    assert len(given) >= 8
    graded = grade(runner, as_source(given), Refusals(), by=grader_of("likelihood", "d"))
    assert graded.refused.tolist() == [False] * len(given)
    assert graded.scores is not None
    for row, score in zip(given, graded.scores, strict=True):
        prompt, response = encode(row["prompt"]), encode(row["response"])
        # With a token more behind it, at which the run is not refused.
        logits = next(
            logits
            for more in range(5, 60)
            for logits in runner.logits([[*prompt, *response, more]])
            if not is_refused(logits[-1])
        )
        seen = log_probabilities(logits)[len(prompt) - 1 : -2]
        assert score == pytest.approx(seen[np.arange(len(response)), response].mean(), rel=1e-3)


CHOICES = ["red", "green!", "blue and grey"]


@pytest.mark.parametrize("by", ["text", "letter"])
def test_the_most_likely_choice_is_the_answer(llama_onnx: Path, llama_checkpoint: Path, by: str) -> None:
    runner = Runner(llama_onnx)
    questions = ["the sky is", "grass?", "roses"]
    graded = grade(
        runner,
        as_source([{"question": text, "choices": CHOICES, "answer": 1} for text in questions]),
        Refusals(),
        by=grader_of({"choice": {"by": by}}, "d"),
    )
    expected = []
    for text in questions:
        if by == "letter":
            text += "\nA. red\nB. green!\nC. blue and grey\nAnswer:"
        shown = [" A", " B", " C"] if by == "letter" else CHOICES
        prompt = runner.tokenizer.encode(text)
        means = [_log_probabilities(llama_checkpoint, prompt, runner.tokenizer.encode(one)).mean() for one in shown]
        expected.append(int(np.argmax(means)) == 1)
    assert graded.correct.tolist() == expected


def test_wrong_choices_alone_are_completed_by_the_response() -> None:
    from bakeout.export.evaluation.graders.choice import choices_of

    assert choices_of({"choices": ["Berlin", "Rome"]}, "Paris", "row") == (["Paris", "Berlin", "Rome"], 0)
    for place in ("B", "b", "(B)", "B.", "1", 1, "Rome"):
        assert choices_of({"choices": ["Berlin", "Rome"], "answer": place}, None, "row") == (["Berlin", "Rome"], 1)
    # An answer among numbers is no index.
    assert choices_of({"choices": ["1", "3", "4"]}, "2", "row") == (["2", "1", "3", "4"], 0)
    with pytest.raises(DataError, match="none of the choices"):
        choices_of({"choices": ["1", "3", "4"], "answer": "2"}, None, "row")
    for answer in (2, True, None, 1.0, "2", "C", "(d)", "9" * 5000):
        with pytest.raises(DataError, match="none of the choices"):
            choices_of({"choices": ["Berlin", "Rome"], "answer": answer}, None, "row")


@pytest.mark.parametrize(
    ("grader", "row", "message"),
    [
        ("number", {"prompt": "p", "response": "none"}, "no number"),
        ("number", {"prompt": "p"}, "no response"),
        ("contains", {"prompt": "p", "answers": []}, "no list of texts"),
        ("python", {"prompt": "p", "response": "x"}, "no tests"),
        ("choice", {"prompt": "p", "response": "x"}, "no list of choices"),
        ("likelihood", {"prompt": "p"}, "no response"),
        ("exact", {"text": "alone"}, "no prompt"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(llama_onnx: Path, grader: str, row: dict[str, Any], message: str) -> None:
    source = RowsInMemory("rows", (json.dumps(row).encode(),))
    with pytest.raises(DataError, match=f"rows, row 1: .*{message}"):
        grade(Runner(llama_onnx), source, Refusals(), by=grader_of(grader, "d"))


def test_tests_are_shown_behind_the_question() -> None:
    grader = grader_of({"python": {"show_tests": 1}}, "d")
    row = {"prompt": "Add.", "tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
    assert grader.asked(row, "w")["prompt"] == "Add.\nYour code should pass these tests:\nassert add(1, 2) == 3"
