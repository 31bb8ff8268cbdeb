"""`bakeout assumptions` on a plan and on an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.verification.check_assumptions import check_assumptions
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan

from tests.conftest import CheckpointOf
from tests.recipe_files import rows, write_rows


@pytest.fixture
def files(tmp_path: Path, tiny_plan: Plan) -> tuple[Path, Path, Path]:
    """A plan, and fresh rows to forget and to retain."""
    save_plan(tiny_plan, tmp_path / "plan.safetensors")
    forget, retain = (
        write_rows(tmp_path / f"{subject}.jsonl", rows(subject, "calibration")) for subject in ("sums", "names")
    )
    return tmp_path / "plan.safetensors", forget, retain


def test_each_intervention_is_checked(files: tuple[Path, Path, Path], llama_checkpoint: Path) -> None:
    plan, forget, retain = files
    arguments = ["assumptions", str(plan), "--base", str(llama_checkpoint), "--prompts", "6", "--json"]
    arguments += ["--forget", str(forget), "--retain", str(retain), "--length", "100"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    adjust, detection = json.loads(result.stdout)["interventions"]
    assert len(adjust["neurons"]) == round(0.2 * 4 * 96)
    assert detection["neurons"] is None
    for checked in (adjust, detection):
        assert [(row["name"], row["first"] >= 100) for row in checked["drift"]] == [
            ("sums", False), ("sums", True), ("names", False), ("names", True),
        ]  # fmt: skip
    # A random model is no place to stand on.
    assert adjust["warnings"]


def test_people_get_tables_and_lengths_that_fit_the_context(
    files: tuple[Path, Path, Path], llama_checkpoint: Path
) -> None:
    plan, forget, retain = files
    arguments = ["assumptions", str(plan), "--base", str(llama_checkpoint), "--prompts", "2"]
    result = CliRunner().invoke(main, [*arguments, "--forget", str(forget), "--retain", str(retain)])
    assert result.exit_code == 0, result.stderr
    assert "those farthest from Gaussian" in result.stdout
    assert "after longer and longer conversations" in " ".join(result.stdout.split())
    assert "WARNING: " in result.stdout


def test_another_model_is_refused(files: tuple[Path, Path, Path], checkpoint_of: CheckpointOf) -> None:
    plan, forget, retain = files
    with pytest.raises(BakeoutError, match="is not the model that"):
        check_assumptions(plan, str(checkpoint_of("qwen2")), [forget], [retain])
