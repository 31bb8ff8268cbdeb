"""Mixtures of experts inside MoE and QMoE, in graphs of onnxruntime-genai's builder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.plan import Keys

from tests.baked_parity import baked, compare, key_space_detection, neuron_adjust_of_experts, plan_of, unbaked
from tests.genai_builder import build
from tests.genai_mixtures import mixture_checkpoint, stored_mixture
from tests.tiny_models import random_prompts

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

# The builder's forms, and the operator that holds the experts.
FORMS = {"fp32": "MoE", "int4": "QMoE", "QDQ": "QMoE"}
# Of one length: the builder's graphs take no position ids.
PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
# What every run of the suite tries.
QUICK = ("int4", "router_logits", 1)

Built = tuple[Path, PreTrainedModel]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """``built("int4")``: the graph's directory, and a model with its weights, made once."""
    checkpoint = mixture_checkpoint(tmp_path_factory.mktemp("gpt_oss"))
    made: dict[str, Built] = {}

    def get(form: str) -> Built:
        if form not in made:
            directory = build(checkpoint, tmp_path_factory.mktemp("built") / "model", form)
            made[form] = directory, stored_mixture(checkpoint, directory)
        return made[form]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_experts_are_held_and_routers_seen(form: str, built: Callable[[str], Built]) -> None:
    graph = load_graph(built(form)[0] / "model.onnx")
    anatomy = read_anatomy(graph)
    assert Counter(held.node.op_type for held in anatomy.held) == {FORMS[form]: 4}
    assert [held.router for held in anatomy.held] == [0, 1, 2, 3]
    assert [(router.experts, router.hidden) for router in anatomy.routers] == [(4, 64)] * 4
    assert (anatomy.layers, anatomy.experts) == ((), ())


def test_neurons_of_experts_that_an_operator_holds_are_refused(built: Callable[[str], Built]) -> None:
    directory, model = built(QUICK[0])
    plan = plan_of(model, [neuron_adjust_of_experts(model, "threshold", PROMPTS)], PROMPTS)
    with pytest.raises(GraphError) as caught:
        apply_plan(load_graph(directory / "model.onnx"), plan)
    assert "inside of QMoE, which hides their neurons" in caught.value.cause
    # There is no other feed-forward layer.
    assert "router_input" in caught.value.remedy


@pytest.mark.parametrize(
    ("form", "keys", "layer"),
    [
        pytest.param(form, keys, layer, marks=() if (form, keys, layer) == QUICK else pytest.mark.slow)
        for form in FORMS
        for keys in ("router_input", "router_logits")
        for layer in (1, 3)
    ],
)
def test_the_baked_graph_is_the_reference_token_for_token(
    form: str, keys: Keys, layer: int, built: Callable[[str], Built]
) -> None:
    """The reference has the dequantised weights of QMoE's graphs, whose products are made in float32."""
    directory, model = built(form)
    plan = plan_of(model, [key_space_detection(model, (layer,), "query", PROMPTS, keys=keys)], PROMPTS)
    exact = form == "QDQ"
    parity = compare(model, plan, unbaked(directory, exact=exact), baked(directory, plan, exact=exact), PROMPTS)
    assert parity.holds, parity
    assert 0 < parity.refused < parity.prompts
