"""A thousand mutated inputs, over every loader: read or refused, and nothing else. `make fuzz` tries many more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_thousand_mutated_inputs_are_read_or_refused() -> None:
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--inputs", "1000", "--commands", "2", "--seed", "11"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("1000 inputs, 2 of them as whole commands")
