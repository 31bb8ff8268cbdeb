"""Bills of materials: valid CycloneDX, the same bytes for the same artifact, and everything that went into it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from bakeout.export.artifacts.file_names import CERTIFICATE, MANIFEST, PLAN
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.report.page import report
from bakeout.export.trust.bill_of_materials import bill_of_materials, bill_text
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan.hiding import hidden
from bakeout.models.plan.plan_file import load_plan


@pytest.fixture(scope="module")
def artifact() -> Path:
    """An artifact of an earlier release."""
    return Path(__file__).parents[2] / "fixtures" / "v0.1.0" / "artifacts" / "graph"


def _written(artifact: Path, path: Path, *options: str) -> dict[str, Any]:
    ran = CliRunner().invoke(main, ["bom", str(artifact), "-o", str(path), *options])
    assert ran.exit_code == 0, ran.output
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_the_foreign_validator_accepts_it(artifact: Path, tmp_path: Path) -> None:
    _written(artifact, tmp_path / "bom.json", "--license", "Apache-2.0", "--base-license", "Llama licence, its own")
    text = (tmp_path / "bom.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None


def test_it_names_what_the_artifact_was_made_of(artifact: Path, tmp_path: Path) -> None:
    content = _written(artifact, tmp_path / "bom.json", "--license", "MIT", "--base-license", "Apache-2.0")
    plan = load_plan(artifact / PLAN)
    model = content["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": hash_file(artifact / MANIFEST)}]
    assert model["licenses"] == [{"expression": "MIT"}]
    assert "sums" in model["name"]
    assert "Key Space Detection" in model["description"]
    by_reference = {one.get("bom-ref", one["name"]): one for one in content["components"]}
    assert by_reference["base-model"]["hashes"][0]["content"] == plan.model.digest
    assert by_reference["base-model"]["licenses"] == [{"expression": "Apache-2.0"}]
    for name, uses in plan.provenance["data"].items():
        for use, digest in uses.items():
            assert by_reference[f"data:{name}:{use}"]["hashes"][0]["content"] == digest
    listed = {one["name"] for one in content["components"] if one["type"] == "file"}
    assert listed == {path.name for path in artifact.iterdir()} - {MANIFEST}


def test_the_same_artifact_gives_the_same_bytes_wherever_it_lies(artifact: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(artifact, tmp_path / "elsewhere")
    _written(artifact, tmp_path / "first.json")
    _written(moved, tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    other = bill_of_materials(artifact, license="MIT")["serialNumber"]
    assert other != bill_of_materials(artifact)["serialNumber"]


def test_figures_are_those_of_the_certificate(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "artifact")
    assert "has not measured" in json.dumps(bill_of_materials(copy))
    figure = {"section": "answers", "name": "accuracy", "slice": "sums", "value": 0.25, "interval": [0.125, 0.5]}
    certificate = {
        "protocol": {"version": 1, "name": "full", "seed": 0},
        "runtime": {"name": "ONNX Runtime"},
        "figures": [{**figure, "precision": "fp32", "n": 8}],
        "not_measured": [],
        "statements": [],
    }
    (copy / CERTIFICATE).write_text(json.dumps(certificate))
    content = bill_of_materials(copy)
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(bill_text(content)) is None
    assert content["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "accuracy",
            "slice": "answers: sums, fp32",
            "value": "0.25",
            "confidenceInterval": {"lowerBound": "0.125", "upperBound": "0.5"},
        }
    ]


def test_what_is_null_in_a_certificate_is_not_shown(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "artifact")
    figure = {"section": "answers", "name": "accuracy", "slice": "sums", "value": 0.25, "precision": "fp32", "n": 8}
    certificate = {
        "protocol": {"version": 1, "name": "full", "seed": 0},
        "runtime": {"name": "ONNX Runtime"},
        "figures": [{**figure, "interval": None, "base": None}],
        "not_measured": [],
        "statements": [],
    }
    (copy / CERTIFICATE).write_text(json.dumps(certificate))
    (shown,) = bill_of_materials(copy)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"][
        "performanceMetrics"
    ]
    assert "confidenceInterval" not in shown
    assert "0.25" in report([copy])


def test_what_is_no_certificate_is_refused(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "artifact")
    (copy / CERTIFICATE).write_text(json.dumps({"figures": [{"name": 1}]}))
    with pytest.raises(BakeoutError, match="is no certificate"):
        bill_of_materials(copy)


def test_salted_digests_are_not_told_as_those_of_files(tmp_path: Path) -> None:
    fixtures = Path(__file__).parents[2] / "fixtures" / "v0.1.0"
    plan = hidden(load_plan(fixtures / "artifacts" / "graph" / PLAN), b"s" * 32)
    content = bill_of_materials(bake(fixtures / "onnx", plan, tmp_path / "artifact", canary=False).directory)
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(bill_text(content)) is None
    data = [component for component in content["components"] if component["type"] == "data"]
    assert data
    for component in data:
        assert "hashes" not in component
        assert [told["name"] for told in component["properties"]] == ["bakeout:salted-digest"]


def test_what_is_not_valid_is_not_written(artifact: Path) -> None:
    content = bill_of_materials(artifact)
    with pytest.raises(BakeoutError, match="not valid CycloneDX"):
        bill_text({**content, "components": [{"type": "no such type", "name": "x"}]})


@pytest.mark.parametrize("license", ["Apache 2.0", "MIT OR", "my own", "", "LicenseRef-", "MIT WITH LicenseRef-Own"])
def test_a_licence_that_is_no_spdx_expression_is_refused(artifact: Path, tmp_path: Path, license: str) -> None:
    ran = CliRunner().invoke(main, ["bom", str(artifact), "-o", str(tmp_path / "bom.json"), "--license", license])
    assert ran.exit_code == 1
    assert f"{license!r} is no SPDX licence expression" in ran.stderr
    assert "`--license`" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("license", ["LicenseRef-Own", "(MIT OR DocumentRef-a:LicenseRef-b.1) AND GPL-2.0-or-later"])
def test_licences_that_spdx_does_not_list_have_names_of_their_own(artifact: Path, tmp_path: Path, license: str) -> None:
    content = _written(artifact, tmp_path / "bom.json", "--license", license)
    assert content["metadata"]["component"]["licenses"] == [{"expression": license}]
