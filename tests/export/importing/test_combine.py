"""Plans put together: what each does to the others is measured, and the whole is baked as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.importing.combine import combine
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import LayerDirection, ResidualAddition
from bakeout.models.plan.kinds.detection_report import KeySpaceDetectionReport, SkillCoverage
from bakeout.models.plan.kinds.regions.cube import Cubes

from tests.baked_parity import key_space_detection
from tests.residual_plans import residual_addition
from tests.weight_plans import PROMPTS, low_rank_update, plan_of


def test_plans_are_combined_and_their_interactions_told(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    model, digest = load_model(llama_checkpoint), weights_digest(llama_checkpoint)
    detection = key_space_detection(model, (1,), "query", PROMPTS)
    skill = SkillCoverage(
        probe_queries=9,
        cubes=(9,),
        floored_dimensions=(0,),
        alpha=1.0,
        calibration_queries=20,
        calibration_inside=0.95,
        epsilon=0.1,
        guaranteed_coverage=0.9,
    )
    alphas = zip(detection.skills, detection.alpha.tolist(), strict=True)
    report = KeySpaceDetectionReport(skills={name: replace(skill, alpha=alpha) for name, alpha in alphas})
    check = plan_of(model, digest, replace(detection, report=report))
    late = plan_of(model, digest, residual_addition(model, layers=(3,)))
    early = plan_of(model, digest, low_rank_update(model, layers=(0,)), residual_addition(model, layers=(0,)))
    combined = combine([check, late, early], str(llama_checkpoint))
    kinds = [intervention.kind for intervention in combined.plan.interventions]
    assert kinds == ["key_space_detection", "residual_addition", "low_rank_update", "residual_addition"]
    of_check, of_late, *of_early = combined.interactions
    assert of_check.is_far and of_check.fitted_without == () and of_check.decisions is not None
    assert of_late.fitted_without == (0,) and of_early[1].fitted_without == (0, 1)
    # Nothing comes before what lies in the first layers.
    assert all(not interaction.is_far for interaction in of_early[1:])
    record = combined.plan.provenance["combined"]
    assert record["interactions"][0]["moved"] > 0.1 and len(record["plans"]) == 3
    quiet = combine([check, late], str(llama_checkpoint))
    assert not quiet.interactions[0].is_far and quiet.interactions[0].decisions == 0
    # What it covers was counted without what moves its keys now.
    assert "at least 90 % of fresh ones" in str(quiet.plan.interventions[0].report.facts())
    assert combined.plan.interventions[0].report == KeySpaceDetectionReport()
    baked = bake(llama_export, quiet.plan, tmp_path / "baked").directory
    checks = verify(baked, base=llama_checkpoint, prompts=PROMPTS)
    assert all(each.ok for each in checks), checks


def test_two_checks_become_one(llama_checkpoint: Path, llama_export: Path, tmp_path: Path) -> None:
    model, digest = load_model(llama_checkpoint), weights_digest(llama_checkpoint)
    check = key_space_detection(model, (1,), "query", PROMPTS)
    cubes = check.regions
    assert isinstance(cubes, Cubes)
    parts = [
        replace(
            check,
            regions=Cubes(cubes.centre[[row]], cubes.deviation[[row]]),
            alpha=check.alpha[[row]],
            skills=(skill,),
        )
        for row, skill in enumerate("ab")
    ]
    late = residual_addition(model, layers=(3,))
    combined = combine(
        [plan_of(model, digest, parts[0], late), plan_of(model, digest, parts[1])], str(llama_checkpoint)
    )
    whole = combined.plan.check
    assert whole is not None and combined.plan.forgets == ("a", "b") and len(combined.plan.interventions) == 2
    found = [(told.intervention, told.plan, told.fitted_without) for told in combined.interactions]
    assert found == [(0, 0, ()), (1, 0, ()), (0, 1, (1,))]
    queries = np.random.default_rng(0).normal(size=(64, check.regions.shape[1]))
    assert np.array_equal(whole.margins(queries), check.margins(queries))
    baked = bake(llama_export, combined.plan, tmp_path / "baked").directory
    checks = verify(baked, base=llama_checkpoint, prompts=PROMPTS)
    assert all(each.ok for each in checks), checks


def test_what_does_not_go_together_is_refused(llama_checkpoint: Path) -> None:
    model, digest = load_model(llama_checkpoint), weights_digest(llama_checkpoint)
    addition = ResidualAddition((LayerDirection(1, np.ones(32, np.float32)),))
    plan = plan_of(model, digest, addition)
    check = plan_of(model, digest, key_space_detection(model, (1,), "query", PROMPTS))
    other = plan_of(model, digest, key_space_detection(model, (0,), "every", PROMPTS))
    for plans, told in (
        ([plan], "alone"),
        ([plan, plan_of(model, "ab" * 32, addition)], "another model"),
        ([check, check], "refuse a"),
        ([check, other], "differ in their layers, positions"),
    ):
        with pytest.raises(BakeoutError, match=told):
            combine(plans, str(llama_checkpoint))
