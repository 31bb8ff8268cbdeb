"""Hidden plans do the same and name nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bakeout.export.artifacts.salt import kept_salt, known_salt
from bakeout.export.baking.bake import bake
from bakeout.export.baking.hiding import hide_plan
from bakeout.export.cli.main import main
from bakeout.export.running.refusals import Refusals
from bakeout.models.plan.hiding import REFUSAL, is_hidden, salted
from bakeout.models.plan.plan_file import load_plan, plan_bytes
from bakeout.models.plan.routing_stability import ROUTING, RoutingStability

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1.0"


def test_a_hidden_plan_names_no_data_and_refuses_without_a_name(tmp_path: Path) -> None:
    plan = load_plan(FIXTURES / "plans" / "key_space_detection.safetensors")
    routing = RoutingStability(0.97, 1234, (0.97,)).as_json()
    plan = replace(plan, provenance={**plan.provenance, ROUTING: routing})
    with kept_salt(tmp_path / "salt") as salt:
        assert known_salt(tmp_path / "salt") == salt
    one = hide_plan(FIXTURES / "checkpoint", plan, salt)
    assert is_hidden(one)
    assert not is_hidden(plan)
    (name,) = plan.forgets
    assert one.forgets == (salted(name.encode(), salt)[:16],)
    content = plan_bytes(one)
    assert f'"{name}"'.encode() not in content
    assert f'\\"{name}\\"'.encode() not in content
    for uses in plan.provenance["data"].values():
        assert all(digest.encode() not in content for digest in uses.values())
    # A figure of the data to retain.
    assert one.routing_stability is None
    assert one.check is not None
    assert plan.check is not None
    assert np.array_equal(one.check.alpha, plan.check.alpha)
    assert one.contradiction == ""
    assert plan_bytes(hide_plan(FIXTURES / "checkpoint", plan, salt)) == content
    artifact = bake(FIXTURES / "onnx", one, tmp_path / "artifact").directory
    assert Refusals.of_artifacts([artifact]).texts == {REFUSAL}
    assert name not in (artifact / "bakeout.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_dry_run_writes_no_salt(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "salt").write_bytes(bytes(range(32)))
    before = sorted(tmp_path.iterdir())
    plan = FIXTURES / "plans" / "key_space_detection.safetensors"
    arguments = ["bake", str(FIXTURES / "onnx"), str(plan), "--hide", str(tmp_path / "salt"), "--dry-run"]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    assert sorted(tmp_path.iterdir()) == before
