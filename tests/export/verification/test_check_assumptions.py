"""`bakeout assumptions` on a plan and on an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.verification.check_assumptions import check_assumptions
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import save_plan
from bakeout.models.reference.assumptions import neuron_shapes

from tests.conftest import CheckpointOf
from tests.recipe_files import rows, write_recipe, write_rows


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


def test_gaussians_are_held_against_the_tokens_that_they_are_of(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Those of all tokens need no responses."""
    adjust = {"neuron_adjust": {"forget": "sums", "ratio": 0.2, "tokens": "all"}}
    data = {name: {"probe": f"data/asked.{name}.jsonl"} for name in ("sums", "names")}
    forget, retain = (
        write_rows(tmp_path / uses["probe"], [{"prompt": row["prompt"]} for row in rows(name, "probe")])
        for name, uses in data.items()
    )
    plan = fit(load_recipe(write_recipe(tmp_path, llama_checkpoint, [adjust], data=data)))
    save_plan(plan, tmp_path / "plan.safetensors")
    (checked,) = check_assumptions(
        tmp_path / "plan.safetensors", str(llama_checkpoint), [forget], [retain], lengths=[40]
    )
    (adjustment,) = plan.interventions
    tokenizer = load_tokenizer(llama_checkpoint)
    records = [read_records(file, tokenizer) for file in (forget, retain)]
    assert checked.shapes == neuron_shapes(load_model(llama_checkpoint), adjustment, *records, scope="all")


def test_another_model_is_refused(files: tuple[Path, Path, Path], checkpoint_of: CheckpointOf) -> None:
    plan, forget, retain = files
    with pytest.raises(BakeoutError, match="is not the model that"):
        check_assumptions(plan, str(checkpoint_of("qwen2")), [forget], [retain])
