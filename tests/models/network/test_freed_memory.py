"""What was freed is no longer resident."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from bakeout.models.network.devices import give_back

_BLOCK, _BLOCKS = 1 << 16, 2000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give back memory in their own way")
def test_freed_blocks_are_given_back() -> None:
    blocks = [bytes([1]) * _BLOCK for _ in range(_BLOCKS)]
    kept = blocks[-1]
    blocks.clear()
    before = _resident()
    give_back()
    assert before - _resident() > _BLOCK * _BLOCKS / 2
    assert len(kept) == _BLOCK


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_freed_is_no_error() -> None:
    give_back()
    give_back()
