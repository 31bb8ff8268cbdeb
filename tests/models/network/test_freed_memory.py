"""What was freed is no longer resident."""

from __future__ import annotations

import platform

import psutil
import pytest

from bakeout.models.network.freed_memory import give_back

_BLOCK, _BLOCKS = 1 << 16, 2000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give back memory in their own way")
def test_freed_blocks_are_given_back() -> None:
    blocks = [bytes([1]) * _BLOCK for _ in range(_BLOCKS)]
    kept = blocks[-1]
    blocks.clear()
    before = psutil.Process().memory_info().rss
    give_back()
    assert before - psutil.Process().memory_info().rss > _BLOCK * _BLOCKS / 2
    assert len(kept) == _BLOCK


def test_nothing_freed_is_no_error() -> None:
    give_back()
    give_back()
