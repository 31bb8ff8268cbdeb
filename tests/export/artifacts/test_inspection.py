import json
from pathlib import Path

import pytest

from bakeout.export.artifacts.inspection import inspect, lines
from bakeout.export.baking.bake import bake
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests.plan_examples import plan


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    save_plan(plan(), tmp_path / "plan.safetensors")
    return tmp_path / "plan.safetensors"


def test_a_plan_shows_what_it_holds(plan_file: Path) -> None:
    found = inspect(plan_file).as_json()
    adjust, check = found["interventions"]
    assert (adjust["kind"], adjust["neurons"], adjust["layers"]) == (
        "neuron_adjust",
        2,
        [{"layer": 2, "neurons": 2}],
    )
    assert [(cube["skill"], cube["alpha"]) for cube in check["cubes"]] == [("math", 2.0), ("math", 2.0), ("code", 3.0)]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_people_can_read_it(plan_file: Path) -> None:
    text = "\n".join(lines(inspect(plan_file)))
    for words in ("FFL width 16", "2 neurons, threshold coin", "3 cubes in layer 1, 3", "code: alpha 3", "ratio"):
        assert words in text


def test_an_artifact_shows_receipts_and_files_too(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    directory = bake(llama_export, tiny_plan, tmp_path / "artifact").directory
    inspection = inspect(directory)
    found = inspection.as_json()
    assert found["files"]["model.onnx"]["size"] == (directory / "model.onnx").stat().st_size
    text = "\n".join(lines(inspection))
    assert f"{len(found['receipts'])} edits" in text
    for receipt in found["receipts"]:
        assert receipt["tensor"] in text


def test_anything_else_is_refused(tmp_path: Path, llama_export: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", llama_export):
        with pytest.raises(BakeoutError):
            inspect(path)
