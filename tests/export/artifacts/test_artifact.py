"""Artifact directories appear whole or not at all, and their manifest vouches for every file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.export.artifacts.artifact import (
    MANIFEST,
    SCHEMA,
    artifact_directory,
    copy_by_kernel,
    read_manifest,
    require_space,
    write_manifest,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file

RECEIPT: dict[str, Any] = {
    "intervention": 0,
    "kind": "neuron_adjust",
    "layer": 2,
    "node": "n",
    "tensor": "t",
    "count": 3,
    "before": "a",
    "after": "b",
    "detail": {},
}


def tree(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_a_directory_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "new" / "artifact"
    with artifact_directory(output) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("content")
        assert not output.exists()
    assert tree(tmp_path) == ["new", "new/artifact", "new/artifact/sub", "new/artifact/sub/file"]
    (tmp_path / "plain").mkdir()
    assert output.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3), BakeoutError("Cause.", "Remedy.")]
)
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), artifact_directory(tmp_path / "new" / "artifact") as directory:
        (directory / "file").write_text("content")
        raise error
    assert tree(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="No space left") as caught, artifact_directory(tmp_path / "a") as directory:
        (directory / "some").write_text("content")
        Path("/dev/full").write_text("too much")
    assert "room" in caught.value.remedy
    assert tree(tmp_path) == []


def test_more_than_the_disk_holds_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="needed"):
        require_space(tmp_path, 1 << 60)
    require_space(tmp_path, 1)


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_what_exists_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "artifact"
    if kind == "directory":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BakeoutError, match="exists already"), artifact_directory(output):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == ["artifact"]
    assert kind != "file" or output.read_text() == "mine"


def test_a_directory_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with pytest.raises(BakeoutError, match="exists already"), artifact_directory(output):
        output.mkdir()
        (output / "mine").write_text("content")
    assert tree(tmp_path) == ["artifact", "artifact/mine"]


@given(pieces=st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([0, 1, 5000])), max_size=4))
def test_copies_have_the_same_bytes_holes_included(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bytes, int]]
) -> None:
    directory = tmp_path_factory.mktemp("copy")
    source = directory / "source"
    with source.open("wb") as file:
        for piece, hole in pieces:
            file.write(piece)
            file.seek(hole, os.SEEK_CUR)
        file.truncate()
    copy_by_kernel(source, directory / "copy")
    assert (directory / "copy").read_bytes() == source.read_bytes()


def test_copies_are_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    (tmp_path / "link").symlink_to("source")
    copy_by_kernel(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").stat().st_nlink == (tmp_path / "source").stat().st_nlink == 1
    with pytest.raises(FileExistsError):
        copy_by_kernel(tmp_path / "source", tmp_path / "copy")


def test_a_manifest_vouches_for_every_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "sub" / "a").write_bytes(b"three")
    write_manifest(tmp_path, {"receipts": [RECEIPT]})
    first = (tmp_path / MANIFEST).read_bytes()
    write_manifest(tmp_path, {"receipts": [RECEIPT]})
    assert (tmp_path / MANIFEST).read_bytes() == first
    manifest = read_manifest(tmp_path)
    assert manifest["files"] == {
        "b": {"sha256": hashlib.sha256(b"two").hexdigest(), "size": 3},
        "sub/a": {"sha256": hashlib.sha256(b"three").hexdigest(), "size": 5},
    }
    assert manifest["receipts"] == [RECEIPT]
    assert hash_file(tmp_path / "b") == manifest["files"]["b"]["sha256"]


def _good() -> dict[str, Any]:
    return {"schema": SCHEMA, "files": {"a": {"sha256": "0" * 64, "size": 1}}, "receipts": [RECEIPT]}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "not a manifest"),
        ("[]", "schema"),
        ("\x00", "not a manifest"),
        ("[" * 100_000, "not a manifest"),
        (json.dumps(_good() | {"schema": 99}), "schema 99"),
        (json.dumps(_good() | {"files": [1]}), "files"),
        (json.dumps(_good() | {"files": {"../outside": {"sha256": "0" * 64, "size": 1}}}), "files"),
        (json.dumps(_good() | {"files": {"/etc/passwd": {"sha256": "0" * 64, "size": 1}}}), "files"),
        (json.dumps(_good() | {"files": {"a": {"sha256": "x", "size": 1}}}), "files"),
        (json.dumps(_good() | {"receipts": [{}]}), "receipts"),
        (json.dumps({"schema": SCHEMA}), "files"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BakeoutError, match=cause):
        read_manifest(tmp_path)


def test_a_directory_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="not an artifact"):
        read_manifest(tmp_path)
