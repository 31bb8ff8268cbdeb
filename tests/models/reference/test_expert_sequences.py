"""A canary holds sequences that are sent to the experts that a plan adjusts, or the plan is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bakeout.export.baking.bake import bake
from bakeout.export.verification.verify import verify
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import identity
from bakeout.models.plan import Cubes, KeySpaceDetection, NeuronAdjust, Plan, PlanError
from bakeout.models.reference.canary import MOST_SEQUENCES, synthesise_canary
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.search_vocabulary import Vocabulary

from tests.plan_examples import adjusted_layer
from tests.tiny_models import tiny_model

VOCABULARY = Vocabulary(np.arange(2, 258))


def test_every_adjusted_expert_is_known() -> None:
    model = tiny_model("deepseek_v3")
    known = identity(model, "")
    for layer in range(known.layers, known.feed_forwards):
        adjust = NeuronAdjust("threshold", (adjusted_layer(layer=layer),))
        canary = synthesise_canary(model, [adjust], VOCABULARY)
        assert not np.isnan(canary.expected[0]).all(), known.name_of(layer)
        assert len(canary.input_ids) <= 5
    every = tuple(adjusted_layer(layer=layer) for layer in range(known.layers, known.feed_forwards))
    canary = synthesise_canary(model, [NeuronAdjust("threshold", every)], VOCABULARY)
    assert not np.isnan(canary.expected[0]).all(axis=0).any()
    assert 4 < len(canary.input_ids) <= MOST_SEQUENCES


def test_sequences_of_experts_lie_clear_of_regions_at_every_token() -> None:
    model = tiny_model("deepseek_v3")
    known = identity(model, "")
    adjusts = [
        NeuronAdjust("threshold", (adjusted_layer(layer=layer),)) for layer in range(known.layers, known.feed_forwards)
    ]
    blank = KeySpaceDetection(
        (1,), Cubes(np.zeros((1, 48)), np.ones((1, 48))), np.ones(1), ("a",), np.array([7, 1]), "every"
    )
    with torch.no_grad(), Hooks(model, [blank]) as hooks:
        model(input_ids=torch.randint(2, 258, (64, 8), generator=torch.Generator().manual_seed(0)))
    keys = hooks.seen[0].numpy()
    check = replace(blank, regions=Cubes(keys.mean(axis=0)[None], keys.std(axis=0)[None]))
    # So many tokens lie inside that of random sequences about half hold one.
    check = replace(check, alpha=np.array([np.quantile(check.margins(keys), 0.08)]))
    canary = synthesise_canary(model, [check, *adjusts], VOCABULARY)
    assert canary.refused is not None
    with torch.no_grad(), Hooks(model, [check]) as hooks:
        model(input_ids=torch.from_numpy(canary.input_ids))
    inside = check.is_inside(check.margins(hooks.seen[0].numpy())).reshape(canary.input_ids.shape)
    np.testing.assert_array_equal(inside.any(axis=1), canary.refused)
    assert len(canary.input_ids) > 4


def test_an_expert_that_nothing_is_sent_to_has_no_canary() -> None:
    model = tiny_model("gpt_oss")
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.router").get_parameter("bias")[0] = -1e4
    adjust = NeuronAdjust("stochastic", (adjusted_layer(layer=0),))
    with pytest.raises(BakeoutError, match="is sent to an expert that Neuron Adjust adjusts"):
        synthesise_canary(model, [adjust], VOCABULARY)


def test_a_canary_without_values_passes_no_check(tiny_plan: Plan, llama_export: Path, tmp_path: Path) -> None:
    def without(*places: int) -> Plan:
        expected = enumerate(tiny_plan.canary.expected)
        values = tuple(np.full_like(own, np.nan) if place in places else own for place, own in expected)
        return replace(tiny_plan, canary=replace(tiny_plan.canary, expected=values))

    for places in ([0], [0, 1]):
        with pytest.raises(PlanError, match="canary has no value of Neuron Adjust"):
            bake(llama_export, without(*places), tmp_path / "refused")
    baked = bake(llama_export, without(0), tmp_path / "baked", canary=False).directory
    (check,) = verify(baked, checks=["canary"])
    assert not check.ok
    assert "no value of Neuron Adjust" in check.detail
