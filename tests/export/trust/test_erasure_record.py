"""Erasure records: they prove to whoever holds the salt what was asked, and tell nobody else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bakeout.export.artifacts.file_names import ERASURE_PAGE, ERASURE_RECORD, MANIFEST, PLAN
from bakeout.export.artifacts.manifest import write_manifest
from bakeout.export.artifacts.salt import known_salt
from bakeout.export.cli.main import main
from bakeout.export.trust.erasure_record import holds
from bakeout.export.verification.verify import verify
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.recipe_files import write_rows

ARTIFACTS = Path(__file__).parents[2] / "fixtures" / "v0.1.0" / "artifacts"
ROWS = [
    {"prompt": "Where does Ada Example live?", "response": " In Exampletown."},
    {"prompt": "1 + 1 =", "response": " 2"},
]


@pytest.mark.parametrize(
    ("form", "told"), [("graph", "suppress and do not erase"), ("checkpoint", "no proof of erasure")]
)
def test_a_record_holds_digests_and_says_what_does_not_erase(tmp_path: Path, form: str, told: str) -> None:
    artifact = shutil.copytree(ARTIFACTS / form, tmp_path / "artifact")
    request = write_rows(tmp_path / "ada-example.jsonl", ROWS)
    salt = tmp_path / "kept" / "salt"
    arguments = ["record", str(artifact), "--request", str(request), "--salt", str(salt), "--derived", str(request)]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    assert salt.stat().st_mode & 0o077 == 0
    text = (artifact / ERASURE_RECORD).read_text(encoding="utf-8")
    page = (artifact / ERASURE_PAGE).read_text(encoding="utf-8")
    for written in (text, page.replace("Derived: ada-example.jsonl", "")):
        assert "Ada" not in written
        assert told in written
    assert "Not measured" in page
    record = json.loads(text)
    for line in request.read_bytes().splitlines():
        assert holds(record, line, known_salt(salt))
        assert not holds(record, line, b"\0" * 32)
    assert not holds(record, b'{"prompt": "another"}', known_salt(salt))
    assert all(check.ok for check in verify(artifact, checks=["files"]))
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert (artifact / ERASURE_RECORD).read_text(encoding="utf-8") == text


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return shutil.copytree(ARTIFACTS / "graph", tmp_path / "artifact")


def _record(artifact: Path, salt: str, *requests: Path) -> Result:
    named = [argument for request in requests for argument in ("--request", str(request))]
    return CliRunner().invoke(main, ["record", str(artifact), *named, "--salt", str(artifact.parent / salt)])


def _content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_record_is_added_to_and_never_replaced(artifact: Path, tmp_path: Path) -> None:
    first, second = (write_rows(tmp_path / f"{name}.jsonl", [row]) for name, row in zip("ab", ROWS, strict=True))
    assert _record(artifact, "salt", first).exit_code == 0
    before = _content(artifact)
    for salt, request in (("salt", second), ("other", first)):
        refused = _record(artifact, salt, request)
        assert refused.exit_code == 1
        assert "erasure.json has requests or derived files that are not named here" in refused.output
        assert _content(artifact) == before
    assert not (tmp_path / "other").exists()
    assert _record(artifact, "salt", first, second).exit_code == 0
    record = json.loads((artifact / ERASURE_RECORD).read_text(encoding="utf-8"))
    assert [request["rows"] for request in record["requests"]] == [1, 1]


def test_a_record_that_the_manifest_does_not_list_is_no_obstacle(artifact: Path, tmp_path: Path) -> None:
    (artifact / ERASURE_RECORD).write_text("left by a command that was killed")
    assert _record(artifact, "salt", write_rows(tmp_path / "a.jsonl", ROWS)).exit_code == 0


def test_a_request_without_rows_is_refused(artifact: Path, tmp_path: Path) -> None:
    refused = _record(artifact, "salt", write_rows(tmp_path / "a.jsonl", ROWS), write_rows(tmp_path / "b.jsonl", []))
    assert refused.exit_code == 1
    assert "b.jsonl: there are no rows" in refused.output
    assert not (artifact / ERASURE_RECORD).exists()


@pytest.mark.parametrize("forgets", [True, False])
def test_data_of_the_plan_are_recorded_where_it_forgets_them(artifact: Path, tmp_path: Path, forgets: bool) -> None:
    request = write_rows(tmp_path / "asked.jsonl", ROWS)
    plan = load_plan(artifact / PLAN)
    data = {**plan.provenance["data"], "sums" if forgets else "names": {"probe": hash_file(request)}}
    changed = replace(plan, provenance={**plan.provenance, "data": data})
    (artifact / PLAN).write_bytes(plan_bytes(changed))
    write_manifest(artifact, json.loads((artifact / MANIFEST).read_text(encoding="utf-8")))
    ran = _record(artifact, "salt", request)
    assert ran.exit_code == (0 if forgets else 1), ran.output
    assert forgets or "asked.jsonl was not forgotten: the plan has it as names, and forgets sums." in ran.output


def test_a_salt_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "salt").write_bytes(b"pepper")
    with pytest.raises(BakeoutError, match="can be guessed"):
        known_salt(tmp_path / "salt")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_record_that_fails_leaves_no_salt_and_takes_none(tmp_path: Path, is_there: bool) -> None:
    artifact = shutil.copytree(ARTIFACTS / "graph", tmp_path / "artifact")
    (artifact / "bakeout.json").write_text("{}")
    if is_there:
        (tmp_path / "salt").write_bytes(bytes(range(32)))
    request = write_rows(tmp_path / "request.jsonl", ROWS)
    ran = CliRunner().invoke(
        main, ["record", str(artifact), "--request", str(request), "--salt", str(tmp_path / "salt")]
    )
    assert ran.exit_code == 1
    assert (tmp_path / "salt").exists() == is_there


def test_two_derived_files_of_one_name_are_refused(tmp_path: Path) -> None:
    artifact = shutil.copytree(ARTIFACTS / "graph", tmp_path / "artifact")
    request = write_rows(tmp_path / "ada-example.jsonl", ROWS)
    arguments = ["record", str(artifact), "--request", str(request), "--salt", str(tmp_path / "salt")]
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "adapter").write_text(directory)
        arguments += ["--derived", str(tmp_path / directory / "adapter")]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 1
    assert "same name" in ran.output
    assert not (artifact / ERASURE_RECORD).exists()
    assert not (tmp_path / "salt").exists()
