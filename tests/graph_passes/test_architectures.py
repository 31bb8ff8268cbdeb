"""Every architecture that optimum exports: Neuron Adjust and Key Space Detection against the PyTorch reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers

from tests.baked_parity import model_of
from tests.conftest import CheckpointOf
from tests.exported_graphs import Kind, compared, holds
from tests.tiny_models import FAMILIES, tiny_checkpoint, tiny_model

# What `make test` runs; `test_parity.py` has more of them there.
QUICK = ("bloom", "glm", "olmo2")


@pytest.mark.parametrize("kind", ["neuron_adjust", "middle"])
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)
def test_it_says_what_the_reference_says(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, kind: Kind
) -> None:
    """Token for token, and another text than the unbaked model's on at least half of the prompts."""
    parity = compared(onnx_of(family), model_of(checkpoint_of(family)), kind)
    assert holds(parity, kind), parity


def test_a_mixture_of_experts_is_refused_before_it_is_exported() -> None:
    with pytest.raises(BakeoutError, match="not one whose feed-forward layers are known"):
        feed_forward_layers(tiny_model("qwen3_moe"))


@pytest.mark.slow
def test_the_graph_of_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("qwen3_moe", tmp_path / "checkpoint", layers=2)
    (tmp_path / "onnx").mkdir()
    with pytest.raises(GraphError, match="Bake a decoder"):
        read_anatomy(load_graph(export_checkpoint(checkpoint, tmp_path / "onnx")))
