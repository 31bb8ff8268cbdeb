"""Mixtures of experts in optimum's exports: what is seen of them, and Key Space Detection on what sees every token."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.verification.graph_canary import match_canary
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.network.families import identity
from bakeout.models.network.key_sites import key_sites
from bakeout.models.plan import Coin, Keys, Plan
from bakeout.models.reference.canary import measure_canary, measured_anew
from bakeout.models.reference.weight_edits import edited_weights

from tests.baked_parity import (
    baked,
    compare,
    key_space_detection,
    model_of,
    neuron_adjust_of_experts,
    plan_of,
    unbaked,
)
from tests.conftest import CheckpointOf
from tests.tiny_models import MIXTURES, random_prompts, tiny_checkpoint
from tests.weight_plans import edits_of_experts, low_rank_update

PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
# The pair that every run of the suite tries.
QUICK = ("deepseek_v3", "key_vector")
# One whose experts are linear layers of some rows, and one whose experts lie in a stack.
EVERY_RUN = (("deepseek_v3", "threshold"), ("gpt_oss", "expected"))
EXPERTS = {"deepseek_v3": 24}


@pytest.fixture(scope="module")
def export_of(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """``export_of(family)``: the directory of our own export, which is optimum's with every expert in it."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(f"{family}-export")
            export_checkpoint(checkpoint_of(family), made[family])
        return made[family]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXTURES)
def test_a_graph_shows_what_the_model_has(family: str, checkpoint_of: CheckpointOf, export_of: CheckpointOf) -> None:
    anatomy = read_anatomy(load_graph(export_of(family) / "model.onnx"))
    model = model_of(checkpoint_of(family))
    identity(model, "").require_shape(
        widths=anatomy.widths, hidden=anatomy.hidden, experts=[router.experts for router in anatomy.routers]
    )
    assert len(anatomy.experts) == EXPERTS.get(family, 16)
    assert not anatomy.held
    for keys in ("key_vector", "router_input", "router_logits"):
        assert [key.width for key in anatomy.keys(keys)] == [site.width for site in key_sites(model, keys)]


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        pytest.param(family, keys, marks=() if (family, keys) == QUICK else pytest.mark.slow)
        for family in MIXTURES
        for keys in ("key_vector", "router_input", "router_logits")
        if keys != "key_vector" or family in ("deepseek_v3", "qwen2_moe")
    ],
)
@pytest.mark.parametrize("layer", [1, -1])
def test_the_baked_graph_is_the_reference_token_for_token(
    family: str, keys: Keys, layer: int, checkpoint_of: CheckpointOf, export_of: CheckpointOf
) -> None:
    model = model_of(checkpoint_of(family))
    layers = (layer % len(key_sites(model, keys)),)
    plan = plan_of(model, [key_space_detection(model, layers, "query", PROMPTS, keys=keys)], PROMPTS)
    directory = export_of(family)
    parity = compare(model, plan, unbaked(directory), baked(directory, plan), PROMPTS)
    assert parity.holds, parity
    assert 0 < parity.refused < parity.prompts


@pytest.mark.parametrize(
    ("family", "coin"),
    [
        pytest.param(family, coin, marks=() if (family, coin) in EVERY_RUN else pytest.mark.slow)
        for family in MIXTURES
        for coin in ("threshold", "expected")
    ],
)
def test_adjusted_experts_are_the_references_token_for_token(
    family: str, coin: Coin, checkpoint_of: CheckpointOf, export_of: CheckpointOf
) -> None:
    model, directory = model_of(checkpoint_of(family)), export_of(family)
    plan = plan_of(model, [neuron_adjust_of_experts(model, coin, PROMPTS)], PROMPTS)
    receipts = apply_plan(load_graph(directory / "model.onnx"), plan)
    assert [receipt.layer for receipt in receipts] == [part.layer for part in plan.interventions[0].parts]
    parity = compare(model, plan, unbaked(directory), baked(directory, plan), PROMPTS)
    assert parity.holds, parity


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_are_adjusted_twice_and_checked(
    family: str, checkpoint_of: CheckpointOf, export_of: CheckpointOf
) -> None:
    model, directory = model_of(checkpoint_of(family)), export_of(family)
    adjusts = [neuron_adjust_of_experts(model, "threshold", PROMPTS, seed=seed) for seed in (0, 1)]
    check = key_space_detection(model, (1,), "query", PROMPTS, adjusts, keys="router_input")
    plan = plan_of(model, [*adjusts, check], PROMPTS)
    parity = compare(model, plan, unbaked(directory), baked(directory, plan), PROMPTS)
    assert parity.holds, parity
    assert 0 < parity.refused < parity.prompts


@pytest.mark.parametrize("family", [family for family, _ in EVERY_RUN])
def test_a_graph_has_the_canary_of_adjusted_experts_and_in_another_order_not(
    family: str, checkpoint_of: CheckpointOf, export_of: CheckpointOf, tmp_path: Path
) -> None:
    model = model_of(checkpoint_of(family))
    adjust = neuron_adjust_of_experts(model, "threshold", PROMPTS)
    experts = [layer for layer in adjust.layers if layer.layer >= identity(model, "").layers]
    plan = plan_of(model, [replace(adjust, layers=tuple(experts))], PROMPTS)
    shifted = zip(experts, [*experts[1:], experts[0]], strict=True)
    wrong = replace(adjust, layers=tuple(replace(other, layer=own.layer) for own, other in shifted))
    for ok, given in ((True, plan), (False, replace(plan, interventions=(wrong,)))):
        graph = load_graph(export_of(family) / "model.onnx")
        receipts = apply_plan(graph, given)
        (match,) = match_canary(_saved(graph, tmp_path / f"{ok}", export_of(family)), given, receipts)
        assert (match.ok, match.skipped) == (ok, False), match


@pytest.mark.parametrize("family", [family for family, _ in EVERY_RUN])
def test_the_canary_of_a_later_adjustment_is_of_experts_that_are_adjusted_already(
    family: str, checkpoint_of: CheckpointOf, export_of: CheckpointOf, tmp_path: Path
) -> None:
    model = model_of(checkpoint_of(family))
    plan = plan_of(
        model, [neuron_adjust_of_experts(model, "threshold", PROMPTS, seed=seed) for seed in (0, 1)], PROMPTS
    )
    graph = load_graph(export_of(family) / "model.onnx")
    receipts = apply_plan(graph, plan)
    matches = match_canary(_saved(graph, tmp_path / "baked", export_of(family)), plan, receipts)
    assert [match.ok for match in matches] == [True, True], matches


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["router_input", "router_logits"])
@pytest.mark.parametrize("router", [0, 2])
def test_a_graph_that_refuses_by_a_router_has_the_canary_of_weight_edits(
    keys: Keys, router: int, dense_last: Path, tmp_path: Path
) -> None:
    """The one FFL lies behind all routers, so a graph computes nothing there of what is refused."""
    model = model_of(dense_last / "checkpoint")
    edit = low_rank_update(model, layers=(0,), scale=0.1)
    with edited_weights(model, [edit]):
        check = key_space_detection(model, (router,), "query", PROMPTS, keys=keys)
        canary = measured_anew(model, [edit, check], [measure_canary(model, [edit, check], PROMPTS, sequences=24)])
    plan = Plan(identity(model, "ab" * 32), (edit, check), canary)
    graph = load_graph(dense_last / "export" / "model.onnx")
    receipts = apply_plan(graph, plan)
    matches = match_canary(_saved(graph, tmp_path / "baked", dense_last / "export"), plan, receipts)
    assert all(match.ok for match in matches), matches
    assert canary.refused is not None
    assert 0 < sum(canary.refused) < len(PROMPTS)


def _saved(graph: ir.Model, directory: Path, export: Path) -> Path:
    """The graph in a directory of its own, with the configuration of the ``export``."""
    directory.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(export / name, directory)
    ir.save(graph, directory / "model.onnx", external_data="model.onnx.data")
    return directory / "model.onnx"


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family == "gpt_oss" else pytest.mark.slow) for family in MIXTURES]
)
@pytest.mark.parametrize("form", ["graph", "checkpoint"])
def test_edited_weights_of_experts_are_the_references(
    family: str, form: str, checkpoint_of: CheckpointOf, export_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(family)
    model = load_model(checkpoint)
    edits = edits_of_experts(model)
    with edited_weights(model, edits):
        canary = measure_canary(model, edits, PROMPTS)
    plan = Plan(identity(model, weights_digest(checkpoint)), edits, canary)
    options = BakeOptions() if form == "graph" else BakeOptions(to="safetensors")
    baked_into = bake(export_of(family) if form == "graph" else checkpoint, plan, tmp_path / "baked", options)
    checks = verify(baked_into.directory, base=checkpoint, prompts=PROMPTS)
    assert all(check.ok for check in checks), checks


@pytest.mark.parametrize(("dense", "seen"), [(0, "router"), pytest.param(3, "gate", marks=pytest.mark.slow)])
def test_a_graph_has_the_canary_of_weight_edits_where_one_block_is_dense(dense: int, seen: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(
        "qwen3_moe", tmp_path / "checkpoint", layers=4 if dense else 2, mlp_only_layers=[dense]
    )
    (tmp_path / "export").mkdir()
    export_checkpoint(checkpoint, tmp_path / "export")
    model = load_model(checkpoint)
    edits = edits_of_experts(model)
    with edited_weights(model, edits):
        plan = Plan(identity(model, weights_digest(checkpoint)), edits, measure_canary(model, edits, PROMPTS))
    assert plan.canary.expected[0].shape[1] == (4 if seen == "router" else 64)
    bake(tmp_path / "export", plan, tmp_path / "baked")


@pytest.fixture(scope="module")
def dense_last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture whose last block is dense: its ``checkpoint`` and its ``export``."""
    directory = tmp_path_factory.mktemp("dense-last")
    tiny_checkpoint("qwen3_moe", directory / "checkpoint", mlp_only_layers=[3])
    (directory / "export").mkdir()
    export_checkpoint(directory / "checkpoint", directory / "export")
    return directory
