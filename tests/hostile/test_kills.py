"""Commands that are killed leave outputs that are whole or absent, and the next run gives what an uncut one gives.

`make kills` kills a hundred times, over all commands that write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hostile.kills.kills import Bench, kills

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked processes")


def _require_no_findings(bench: Bench, count: int, seed: int) -> None:
    for killed in kills(bench, count, seed):
        assert not killed.findings, f"{killed.name}, {killed.moment}: {killed.findings}"


def test_quick_commands_are_killed_six_times(tmp_path: Path) -> None:
    _require_no_findings(Bench(tmp_path, ["fit", "bake a graph", "tune"]), 6, seed=1)


@pytest.mark.slow
def test_every_command_that_writes_is_killed(tmp_path: Path) -> None:
    _require_no_findings(Bench(tmp_path), 100, seed=2)
