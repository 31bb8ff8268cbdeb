"""Plans and artifacts that version 0.1.0 wrote are read, verified and baked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bakeout.export.cli.main import main

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1.0"
CHECKPOINT, GRAPH = FIXTURES / "checkpoint", FIXTURES / "onnx"
ARTIFACTS = sorted(path.name for path in (FIXTURES / "artifacts").iterdir())
# The kinds of each plan's interventions.
PLANS = {
    "neuron_adjust_threshold": ["neuron_adjust"],
    "neuron_adjust_expected": ["neuron_adjust"],
    "neuron_adjust_stochastic": ["neuron_adjust"],
    "key_space_detection": ["key_space_detection"],
    "key_space_detection_cubes": ["key_space_detection"],
    "key_space_detection_chosen": ["key_space_detection"],
    "zero_columns": ["zero_columns"],
    "lunar": ["low_rank_update"],
    "lunar_gradient": ["low_rank_update"],
    "unlearn": ["low_rank_update"],
    "learn": ["low_rank_update"],
    "reveal_and_release": ["low_rank_update"],
    "reveal_and_release_patterns": ["low_rank_update"],
    "graph_methods": ["neuron_adjust", "key_space_detection"],
    "weight_methods": ["zero_columns", "low_rank_update", "low_rank_update"],
    "mixed": ["low_rank_update", "zero_columns", "neuron_adjust", "key_space_detection"],
}
WEIGHT_EDITS = {"zero_columns", "low_rank_update"}
OF_WEIGHTS = [name for name, kinds in PLANS.items() if set(kinds) <= WEIGHT_EDITS]
METHODS = {"lunar": "LUNAR", "unlearn": "UNLEARN", "learn": "LEARN", "reveal_and_release": "reveal_and_release"}

Bakeout = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def bakeout() -> Bakeout:
    """The command: what it prints as JSON, where it succeeds."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        printed: dict[str, Any] = json.loads(result.stdout)
        return printed

    return run


def test_every_fixture_is_tested() -> None:
    assert {path.stem for path in (FIXTURES / "plans").iterdir()} == PLANS.keys()


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_inspected(bakeout: Bakeout, name: str) -> None:
    inspected = bakeout("inspect", plan(name))
    assert [intervention["kind"] for intervention in inspected["interventions"]] == PLANS[name]
    assert inspected["provenance"]["versions"]["bakeout"] == "0.1.0"
    assert all(intervention["report"] for intervention in inspected["interventions"])


@pytest.mark.parametrize("coin", ["threshold", "expected", "stochastic"])
def test_a_coin_is_read(bakeout: Bakeout, coin: str) -> None:
    (intervention,) = bakeout("inspect", plan(f"neuron_adjust_{coin}"))["interventions"]
    assert intervention["coin"] == coin
    assert intervention["neurons"] == 16


def test_cubes_of_several_layers_are_read(bakeout: Bakeout) -> None:
    (intervention,) = bakeout("inspect", plan("key_space_detection_cubes"))["interventions"]
    assert (intervention["layers"], intervention["positions"]) == ([0, 1], "step")
    assert [cube["skill"] for cube in intervention["cubes"]] == ["sums", "sums"]
    assert [cube["dimensions"] for cube in intervention["cubes"]] == [80, 80]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_read(bakeout: Bakeout, method: str) -> None:
    (intervention,) = bakeout("inspect", plan(method))["interventions"]
    assert intervention["method"] == METHODS[method]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_baked_into_a_graph(bakeout: Bakeout, name: str, tmp_path: Path) -> None:
    baked = bakeout("bake", GRAPH, plan(name), "-o", tmp_path / "baked")
    assert {receipt["intervention"] for receipt in baked["receipts"]} == set(range(len(PLANS[name])))
    require_verified(bakeout, tmp_path / "baked")


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_plan_of_weights_is_baked_into_a_checkpoint(bakeout: Bakeout, name: str, tmp_path: Path) -> None:
    bakeout("bake", CHECKPOINT, plan(name), "-o", tmp_path / "baked", "--to", "safetensors")
    require_verified(bakeout, tmp_path / "baked")


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_verified_and_inspected(bakeout: Bakeout, name: str) -> None:
    require_verified(bakeout, FIXTURES / "artifacts" / name)
    assert bakeout("inspect", FIXTURES / "artifacts" / name)["receipts"]


def plan(name: str) -> Path:
    return FIXTURES / "plans" / f"{name}.safetensors"


def require_verified(bakeout: Bakeout, directory: Path) -> None:
    """Every check of `bakeout verify` was made, and passed."""
    verified = bakeout("verify", directory, "--base", CHECKPOINT)
    assert [check["name"] for check in verified["checks"]][-2:] == ["canary", "parity"]
    assert all(check["ok"] for check in verified["checks"])
