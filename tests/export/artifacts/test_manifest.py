"""A manifest vouches for every file of an artifact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import SCHEMA, read_manifest, write_manifest
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
        (json.dumps(_good() | {"options": {"scale": float("nan")}}), "NaN"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BakeoutError, match=cause):
        read_manifest(tmp_path)


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "some.plan").write_bytes(b"")
    with pytest.raises(BakeoutError, match=r"some\.plan is a file, not an artifact's directory"):
        read_manifest(tmp_path / "some.plan")


def test_a_directory_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="not an artifact"):
        read_manifest(tmp_path)
