"""Files that are added to an artifact: nothing that is wrong with it becomes right by them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bakeout.export.artifacts.additions import add_files
from bakeout.export.artifacts.file_names import CARD, ERASURE_RECORD, MANIFEST, SIGNATURE
from bakeout.export.verification.verify import verify
from bakeout.models.errors import BakeoutError

ARTIFACT = Path(__file__).parents[2] / "fixtures" / "v0.1.0" / "artifacts" / "graph"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """One of an earlier release, which had no card yet."""
    directory = shutil.copytree(ARTIFACT, tmp_path / "artifact")
    add_files(directory, {CARD: "a card"})
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def is_sound(directory: Path) -> bool:
    return all(check.ok for check in verify(directory, checks=["files"]))


def _add_a_file(artifact: Path) -> None:
    (artifact / "modeling.py").write_text("import os")


def _change_a_file(artifact: Path) -> None:
    with (artifact / "model.onnx").open("r+b") as file:
        file.write(b"?")


def _change_the_card(artifact: Path) -> None:
    with (artifact / CARD).open("a") as file:
        file.write("It forgets everything.")


def _lose_a_file(artifact: Path) -> None:
    (artifact / "tokenizer_config.json").unlink()


def _link_a_file(artifact: Path) -> None:
    (artifact / "link").symlink_to(artifact / CARD)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_add_a_file, "not in the manifest: modeling.py"),
        (_change_a_file, "changed: model.onnx"),
        (_change_the_card, f"changed: {CARD}"),
        (_lose_a_file, "missing: tokenizer_config.json"),
        (_link_a_file, "link is a link"),
    ],
)
def test_damage_does_not_become_right(artifact: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(artifact)
    before = files(artifact)
    with pytest.raises(BakeoutError, match=told):
        add_files(artifact, {"note.txt": "a", CARD: "another card"})
    assert files(artifact) == before
    assert not is_sound(artifact)


def test_what_is_outdated_goes_and_a_log_line_tells_so(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_files(artifact, {ERASURE_RECORD: "{}", "note.txt": "of before"})
    (artifact / SIGNATURE).write_text("{}")
    with caplog.at_level(logging.WARNING, "bakeout"):
        add_files(artifact, {CARD: "a new card"}, without=[ERASURE_RECORD, "note.txt", "never there"])
    assert is_sound(artifact)
    assert not files(artifact).keys() & {SIGNATURE, ERASURE_RECORD, "note.txt"}
    assert [record.message.partition(" ")[0] for record in caplog.records] == [ERASURE_RECORD, SIGNATURE]


def test_a_killed_addition_is_done_again(artifact: Path) -> None:
    """Whatever had taken its place, and whatever lies there that was to."""
    added = {"certificate.json": "{}", CARD: "a new card"}
    (artifact / "certificate.json").write_text("{}")
    (artifact / CARD).write_text("a new card")
    left = artifact / f".{MANIFEST}.01234567.bakeout"
    left.mkdir()
    (left / "new-2").write_text("{")
    add_files(artifact, added)
    assert is_sound(artifact)
    assert not left.exists()
