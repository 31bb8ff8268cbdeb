"""Mixtures of experts in optimum's exports: what is seen of them, and Key Space Detection on what sees every token."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.verification.graph_canary import match_canary
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.network.families import identity
from bakeout.models.network.key_sites import key_sites
from bakeout.models.plan import Keys, Plan
from bakeout.models.reference.canary import measure_canary, measured_anew
from bakeout.models.reference.weight_edits import edited_weights

from tests.baked_parity import baked, compare, key_space_detection, model_of, plan_of, unbaked
from tests.conftest import CheckpointOf
from tests.tiny_models import MIXTURES, random_prompts, tiny_checkpoint
from tests.weight_plans import low_rank_update

PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
# The pair that every run of the suite tries.
QUICK = ("deepseek_v3", "key_vector")
# gpt-oss's experts are products of three dimensions, whose neurons no pass looks for.
EXPERTS = {"deepseek_v3": 24, "gpt_oss": 0}


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
    ir.save(graph, tmp_path / "model.onnx", external_data="model.onnx.data")
    matches = match_canary(tmp_path / "model.onnx", plan, receipts)
    assert all(match.ok for match in matches), matches
    assert canary.refused is not None
    assert 0 < sum(canary.refused) < len(PROMPTS)


@pytest.fixture(scope="module")
def dense_last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture whose last block is dense: its ``checkpoint`` and its ``export``."""
    directory = tmp_path_factory.mktemp("dense-last")
    tiny_checkpoint("qwen3_moe", directory / "checkpoint", mlp_only_layers=[3])
    (directory / "export").mkdir()
    export_checkpoint(directory / "checkpoint", directory / "export")
    return directory
