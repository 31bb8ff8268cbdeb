"""Every architecture that optimum exports: Neuron Adjust and Key Space Detection against the PyTorch reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.export.onnx_export import export_checkpoint
from bakeout.graph_passes.anatomy import read_anatomy
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph_file import load_graph
from bakeout.models.errors import BakeoutError
from bakeout.models.families import feed_forward_layers

from tests.baked_parity import baked, compare, key_space_detection, model_of, neuron_adjust, plan_of, unbaked
from tests.conftest import CheckpointOf
from tests.tiny_models import FAMILIES, random_prompts, tiny_checkpoint, tiny_model

# What `make test` runs; `test_parity.py` has more of them there.
QUICK = ("bloom", "glm", "olmo2")
# All of one length: not every graph takes position ids, and one without may not be padded.
PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)


@pytest.mark.parametrize("kind", ["neuron_adjust", "key_space_detection"])
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)
def test_it_says_what_the_reference_says(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, kind: str
) -> None:
    """Token for token, and another text than the unbaked model's on at least half of the prompts."""
    model = model_of(checkpoint_of(family))
    intervention = (
        neuron_adjust(model, "threshold", PROMPTS)
        if kind == "neuron_adjust"
        else key_space_detection(model, (1,), "query", PROMPTS)
    )
    plan = plan_of(model, [intervention], PROMPTS)
    directory = onnx_of(family)
    parity = compare(model, plan, unbaked(directory), baked(directory, plan), PROMPTS)
    assert parity.holds, parity


def test_a_mixture_of_experts_is_refused_before_it_is_exported() -> None:
    with pytest.raises(BakeoutError, match="not one whose feed-forward layers are known"):
        feed_forward_layers(tiny_model("qwen3_moe"))


@pytest.mark.slow
def test_the_graph_of_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("qwen3_moe", tmp_path / "checkpoint", layers=2)
    (tmp_path / "onnx").mkdir()
    with pytest.raises(GraphError, match="Bake a decoder"):
        read_anatomy(load_graph(export_checkpoint(checkpoint, tmp_path / "onnx")))
