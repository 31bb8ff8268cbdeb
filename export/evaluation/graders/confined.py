"""Runs one program that a model wrote. A script of its own: it is started by path, and imports nothing of ours.

Reads a JSON object from standard input: ``programs`` and ``tests`` (run one after another in one namespace, the latter
as a script), ``memory`` (MiB), ``seconds``, ``token``, ``isolated`` and ``parent``, the process that it ends with.
Writes the token once all of them ran through, or why the process cannot be isolated, behind ``isolation:``. The working
directory is all that an isolated program may write to.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
from types import ModuleType
from typing import Any

_NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_SET_PARENT_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES = 1, 38
# Landlock's system calls, which have these numbers on every architecture, and the rights that change files: to write,
# to remove, to create anything, to move (from version 2 on) and to truncate (from 3 on).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CHANGES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_MOVE, _TRUNCATE = 1 << 13, 1 << 14
_MEBIBYTE = 1 << 20
_LARGEST_FILE, _PROCESSES, _OPEN_FILES = 16 * _MEBIBYTE, 64, 64


def main() -> None:
    """Run what standard input asks for."""
    job: dict[str, Any] = json.load(sys.stdin)
    result = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if job["isolated"]:
        try:
            isolate(job["parent"])
        except OSError as error:
            os.write(result, f"isolation: {error.strerror}".encode())
            return
    else:
        end_with(job["parent"])
    limit(job["memory"], job["seconds"])
    # What an answer does only when it is run as a script, such as reading input, is no part of what is tested.
    answer = ModuleType("answer")
    for name in (answer.__name__, "__main__"):
        answer.__name__ = name
        sys.modules[name] = answer
        programs = job["tests" if name == "__main__" else "programs"]
        if name == "__main__" and any("unittest" in program for program in programs):
            let_unittest_return()
        for program in programs:
            # A program is judged by what it does, and whatever it raises ends it.
            exec(compile(program, "<answer>", "exec", dont_inherit=True), vars(answer))
    os.write(result, job["token"].encode())


def let_unittest_return() -> None:
    """Have ``unittest.main()`` return where tests passed, and raise where they did not, instead of exiting.

    An exit that tests made cannot be told from one that the answer made, as in ``add = sys.exit``, so none counts.
    """
    import unittest

    class Returning(unittest.TestProgram):
        exit: bool

        def runTests(self) -> None:  # noqa: N802 - unittest's name
            exits, self.exit = self.exit, False
            super().runTests()
            # An answer can skip a test, which unittest takes for success.
            if exits and not (self.result.testsRun and self.result.wasSuccessful() and not self.result.skipped):
                raise AssertionError("not all tests passed")

    vars(unittest)["main"] = Returning


def end_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which started it, ends; Linux alone can."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(*(ctypes.c_long(number) for number in (_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)))
    # A parent that had ended before sends no signal.
    if os.getppid() != parent:
        os._exit(1)


def isolate(parent: int) -> None:
    """Cut this process off: no network, no other processes, no file but those in the working directory to change.

    It ends with ``parent``. Raises ``OSError`` where the kernel does not allow it.
    """
    if sys.platform != "linux":
        raise OSError(0, "it takes Linux")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> int:
        result = int(getattr(libc, name)(*arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
        return result

    def as_long(*numbers: int) -> list[Any]:
        return [ctypes.c_long(number) for number in numbers]

    call("unshare", _NEWUSER | _NEWNET | _NEWPID | _NEWIPC)
    # Behind unshare, since a change of credentials may clear the signal.
    end_with(parent)
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    # The first process of its namespace: when it ends, so do all that the program started.
    call("prctl", *as_long(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    version = call("syscall", *as_long(_CREATE_RULESET, 0, 0, 1))
    changes = _CHANGES | (_MOVE if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = (ctypes.c_uint64 * 1)(changes)
    rules = call("syscall", ctypes.c_long(_CREATE_RULESET), ruleset, *as_long(8, 0))
    here = os.open(".", os.O_RDONLY)
    # struct landlock_path_beneath_attr, packed: the rights, and the directory's descriptor.
    beneath = ctypes.create_string_buffer(changes.to_bytes(8, sys.byteorder) + here.to_bytes(4, sys.byteorder), 12)
    call("syscall", *as_long(_ADD_RULE, rules, 1), beneath, ctypes.c_long(0))
    call("prctl", *as_long(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    call("syscall", *as_long(_RESTRICT_SELF, rules, 0))
    os.close(here)
    os.close(rules)


def limit(memory: int, seconds: float) -> None:
    """Bound memory (MiB), processor time, processes, open files and the size of files."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has none: the time alone is bounded there, by who started this process
        return
    limits = {
        resource.RLIMIT_AS: memory * _MEBIBYTE,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_NPROC: _PROCESSES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: _LARGEST_FILE,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        # Some systems do not know all of them.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
