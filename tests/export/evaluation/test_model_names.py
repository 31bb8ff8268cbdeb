"""Names of models do not depend on where their directories lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.export.evaluation.model_names import model_names


@pytest.mark.parametrize(
    ("directories", "names"),
    [
        (["a/one", "b/two"], ["one", "two"]),
        (["a/one", "b/one"], ["a/one", "b/one"]),
        (["x/a/one", "y/a/one", "y/a/two"], ["x/a/one", "y/a/one", "y/a/two"]),
        (["a/one", "a/one"], ["one", "one"]),
        (["a/base"], ["a/base"]),
        (["a/one/../two"], ["two"]),
        ([], []),
    ],
)
def test_a_name_is_as_short_as_it_can_be(tmp_path: Path, directories: list[str], names: list[str]) -> None:
    assert model_names([tmp_path / directory for directory in directories]) == names


def test_a_relative_path_has_the_name_of_the_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_names([Path()]) == [tmp_path.name]
