"""A search that was cut, wherever, gives what an uncut one gives; a journal that was changed is not gone on from."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path

import pytest

from bakeout.export.tuning.search import search
from bakeout.export.tuning.trials import Measured, Trial
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.search_space import Among, Axes, Settings, Span

_SPACE: Axes = {"ratio": Span(0.003, 0.6), "selection": Among(("difference", "standardised"))}
_STARTS: tuple[Settings, ...] = ({"ratio": 0.03, "selection": "difference"},)
_TRIALS = 8


class _Meter:
    """Counts what it measures."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, settings: Settings) -> Measured:
        self.count += 1
        ratio = settings["ratio"] * (1.3 if settings["selection"] == "standardised" else 1)
        return Measured({"math": max(0.0, 1 - 3 * ratio)}, {"code": 1 - ratio**2 / 3}, math.sqrt(ratio))


def _search(journal: Path, meter: _Meter | None = None, trials: int = _TRIALS, name: str = "one") -> list[Trial]:
    return search(_SPACE, _STARTS, meter or _Meter(), trials=trials, seed=3, journal=journal, name=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Trial], bytes]:
    journal = tmp_path_factory.mktemp("whole") / "journal.log"
    return _search(journal), journal.read_bytes()


def test_a_search_goes_on_from_every_cut(tmp_path: Path, whole: tuple[list[Trial], bytes]) -> None:
    trials, content = whole
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == _TRIALS
    draw = random.Random(0)
    cuts = {0, *ends, *(end - 1 for end in ends), *(draw.randrange(len(content)) for _ in range(20))}
    journal = tmp_path / "journal.log"
    for cut in sorted(cuts):
        journal.write_bytes(content[:cut])
        meter = _Meter()
        assert _search(journal, meter) == trials
        assert meter.count <= _TRIALS - sum(end <= cut for end in ends)
        assert journal.read_bytes() == content


def test_a_line_that_was_cut_is_told(
    tmp_path: Path, whole: tuple[list[Trial], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    journal = tmp_path / "journal.log"
    journal.write_bytes(whole[1][:-1])
    _search(journal)
    assert "its trial is measured again" in caplog.text


def test_a_journal_that_was_changed_is_refused(tmp_path: Path, whole: tuple[list[Trial], bytes]) -> None:
    trials, content = whole
    lines = content.splitlines(keepends=True)
    draw = random.Random(1)
    changed = []
    for _ in range(100):
        spoilt = bytearray(content)
        # Of any line but the last: where that one loses its end, it was cut.
        spoilt[draw.randrange(len(content) - len(lines[-1]))] ^= 1 << draw.randrange(8)
        changed.append(bytes(spoilt))
    changed += [b"".join(lines[:index] + lines[index + 1 :]) for index in range(_TRIALS - 1)]
    changed += [b"".join([lines[1], lines[0], *lines[2:]]), b"".join([*lines, lines[-1]]), b"\0" * 50 + b"\n", b"[]\n"]
    journal = tmp_path / "journal.log"
    for spoilt_content in changed:
        journal.write_bytes(spoilt_content)
        with pytest.raises(BakeoutError) as caught:
            _search(journal)
        assert "Remove it" in caught.value.remedy
        assert journal.read_bytes() == spoilt_content
    journal.unlink()
    assert _search(journal) == trials


def test_measurements_of_other_settings_are_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    _search(journal, trials=3)
    with pytest.raises(BakeoutError, match="should be of"):
        search(
            _SPACE, [{"ratio": 0.2, "selection": "difference"}], _Meter(), trials=3, seed=3, journal=journal, name="one"
        )


def test_searches_share_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    first, second = _search(journal, trials=3), _search(journal, trials=2, name="two")
    meter = _Meter()
    assert _search(journal, meter, trials=3) == first
    assert _search(journal, meter, trials=2, name="two") == second
    assert meter.count == 0
    assert _search(journal, meter, trials=2) == first[:2]
