"""The answer is Python code that passes the row's tests. It runs, in a process that is cut off from everything else."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bakeout.export.evaluation.graders import confined
from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.export.recipes.grades import PythonOptions
from bakeout.models.data.prompt_rows import asking_more
from bakeout.models.data.row_source import DataError
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import scratch_directory

# Tildes without a language are no fence: they underline headings in docstrings.
_FENCED = re.compile(r"(```|~~~(?=[ \t]*py))[ \t]*(?:\{?py[^\n`]*)?\n(.*?)(?:\n[ \t]*\1|\Z)", re.DOTALL | re.IGNORECASE)
# A language stands alone behind a fence that begins its line.
_OF_ANOTHER_LANGUAGE = re.compile(
    r"^[ \t]*```[ \t]*(?!\{?py)[a-z][\w+#.-]*[ \t]*\n.*?(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE
)
# Seconds for the interpreter to start in.
_STARTING = 5.0
_REASON = "isolation: "


class Python(AnswerGrader):
    """Runs the answer's code, then the row's ``tests``, in a throwaway process and directory."""

    title = "code that passes its tests"

    def __init__(self, options: PythonOptions) -> None:
        self._options = options
        self._isolated = True
        reason = self._run(["pass"])
        if reason is True:
            return
        if not options.unisolated:
            why = reason.removeprefix(_REASON) if isinstance(reason, str) else "the process did not run"
            raise BakeoutError(
                f"The code that a model writes cannot be isolated here ({why}).",
                "Use Linux with user namespaces and Landlock, or give `unisolated: true` inside a sandbox of yours.",
            )
        self._isolated = False

    def asked(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The row, with as many of its tests behind the question as are to be shown."""
        tests = _tests(row, where)[: self._options.show_tests]
        if not tests:
            return row
        return asking_more(row, "\nYour code should pass these tests:\n" + "\n".join(tests), where)

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a row without tests."""
        _tests(question.row, question.where)

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where the code and all tests run through."""
        setup = question.row.get("setup") or ""
        return Verdict(self._run([str(setup), code_of(answer)], _tests(question.row, question.where)) is True)

    def _run(self, programs: Sequence[str], tests: Sequence[str] = ()) -> bool | str:
        """Whether the programs ran through; a text where the process could not be isolated."""
        token = secrets.token_hex(16)
        job = {
            "programs": programs,
            "tests": tests,
            "memory": self._options.memory,
            "seconds": self._options.timeout,
            "token": token,
            "isolated": self._isolated,
            "parent": os.getpid(),
        }
        with scratch_directory() as directory:
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(confined.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=directory,
                env=_environment(str(directory)),
                start_new_session=True,
            )
            try:
                said, _ = process.communicate(json.dumps(job).encode(), self._options.timeout + _STARTING)
            except subprocess.TimeoutExpired:
                return False
            finally:
                _end(process)
        text = said.decode("utf-8", "replace")
        return text if text.startswith(_REASON) else text == token


def code_of(answer: str) -> str:
    r"""The code in an answer: its first fenced block that defines something, or its first one; all of it without any.

    Blocks of another language are left out.

    >>> code_of("Here it is:\n```python\ndef f():\n    pass\n```\nIt does nothing.")
    'def f():\n    pass'
    """
    answer = _OF_ANOTHER_LANGUAGE.sub("", answer.replace("\r\n", "\n"))
    blocks = [_unindented(block) for _, block in _FENCED.findall(answer)]
    return next((block for block in blocks if "def " in block), blocks[0] if blocks else answer)


def _unindented(block: str) -> str:
    """A block as it would stand at the margin: under an item of a list, all of its lines are indented."""
    # A block that begins at the margin is left alone: dedent would also empty the blank lines in its texts.
    return textwrap.dedent(block) if block[:1].isspace() else block


def _tests(row: Mapping[str, Any], where: str) -> list[str]:
    tests = row.get("tests")
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise DataError(
            f"{where}: the row has no tests.", "Give each row `tests`: Python statements, as MBPP has them."
        )
    return tests


def _environment(directory: str) -> dict[str, str]:
    """Next to nothing: no keys, no proxies, no home."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "HOME": directory, "TMPDIR": directory, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started, and do not wait for pipes that any of them holds open."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
