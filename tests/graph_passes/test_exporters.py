"""Graphs of every exporter, in every precision, against the PyTorch reference with the weights that the graph holds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from bakeout.graph_passes.graph.graph_file import load_graph

from tests.exported_graphs import EXPORTS, Kind, compared, export, holds
from tests.tiny_models import tiny_checkpoint

# `make test` has optimum's in float32 in many other tests.
KINDS: tuple[Kind, ...] = ("neuron_adjust", "middle", "last")
QUICK = dict(zip((name for name in EXPORTS if name != "optimum fp32" and not name.startswith("dynamo")), cycle(KINDS)))

Exported = tuple[Path, PreTrainedModel]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """``exported("genai int4")``: the graph's directory, and a model with its weights, made once."""
    # GroupQueryAttention wants heads of 16.
    checkpoint = tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"), hidden=64)
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = export(checkpoint, tmp_path_factory.mktemp("exported") / "model", name)
        return made[name]

    return get


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # Whatever finds a layer's nodes is the same for all interventions: each form has one of them in `make test`.
        pytest.param(name, kind, marks=[] if kind == QUICK.get(name) else pytest.mark.slow)
        for name in EXPORTS
        for kind in KINDS
    ],
)
def test_it_says_what_the_reference_says(exported: Callable[[str], Exported], name: str, kind: Kind) -> None:
    """Token for token, and another text than the unbaked graph's on at least half of the prompts."""
    parity = compared(*exported(name), kind, name)
    assert holds(parity, kind, name), parity


@pytest.mark.slow
def test_source_paths_of_torchs_exporter_are_dropped(exported: Callable[[str], Exported]) -> None:
    directory, _ = exported("dynamo opset20")
    assert b"site-packages" in (directory / "model.onnx").read_bytes()
    model = load_graph(directory / "model.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.all_nodes())
