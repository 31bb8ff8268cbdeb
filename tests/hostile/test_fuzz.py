"""A thousand mutated inputs, over every loader: read or refused, and nothing else. `make fuzz` tries many more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("inputs", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_inputs_are_read_or_refused(inputs: int) -> None:
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--inputs", str(inputs), "--commands", "2", "--seed", "11"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{inputs} inputs, 2 of them as whole commands")
