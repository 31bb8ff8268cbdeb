"""One answer to "is this a refusal": by text and by logits, alike for every command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bakeout.export.attacks.attack import attack
from bakeout.export.baking.bake import bake
from bakeout.export.evaluation.grading import grade
from bakeout.export.evaluation.likelihood import predict
from bakeout.export.running.refusals import Refusals, answer_text, is_refused
from bakeout.export.running.runner import Runner
from bakeout.models.plan import KeySpaceDetection, Plan

from tests.recipe_files import rows, write_rows


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("refusals") / "artifact").directory


def test_an_artifact_refuses_with_the_text_of_its_plan(artifact: Path, tiny_plan: Plan, llama_export: Path) -> None:
    tokenizer = Runner(artifact).tokenizer
    refusals = Refusals.of_artifacts([artifact, llama_export])
    assert refusals == Refusals.of_plan(tiny_plan, tokenizer)
    (tokens,) = (one.refusal.tolist() for one in tiny_plan.interventions if isinstance(one, KeySpaceDetection))
    assert refusals.is_refusal(answer_text(tokenizer, tokens))
    assert not refusals.is_refusal(answer_text(tokenizer, tokens) + " but 2")
    assert not refusals.is_refusal("")


def test_what_has_no_plan_never_refuses(llama_export: Path) -> None:
    refusals = Refusals.of_artifacts([llama_export])
    assert not refusals
    assert refusals.longest(Runner(llama_export).tokenizer) == 0


@pytest.mark.parametrize("end", [-30_000.0, -60_000.0])
def test_a_refused_position_leaves_one_token(end: float) -> None:
    logits = np.full(8, -30_000, dtype=np.float32)
    logits[[2, 5]] = 0, end
    assert is_refused(logits)
    assert not is_refused(np.linspace(-50, 50, 8, dtype=np.float32))
    # Logits that were softened stay refused.
    assert is_refused(logits.astype(np.float16).astype(np.float32))


def test_evaluate_attack_and_perplexity_refuse_the_same_rows(artifact: Path, tmp_path: Path) -> None:
    content = [{**row, "response": " 2"} for row in rows("sums", "calibration") + rows("names", "calibration")]
    path = write_rows(tmp_path / "mixed.jsonl", content)
    runner, refusals = Runner(artifact), Refusals.of_artifacts([artifact])
    graded = grade(runner, path, refusals)
    assert 0 < graded.refused.sum() < len(content)
    prompts = [{"text": row["prompt"]} for row in content]
    assert predict(runner, write_rows(tmp_path / "prompts.jsonl", prompts)).refused.tolist() == graded.refused.tolist()
    (attacked,) = attack([artifact], [path], attacks=["none"])
    assert attacked.refused == graded.refused.sum()
