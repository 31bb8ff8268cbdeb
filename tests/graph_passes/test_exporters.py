"""Graphs of every exporter, in every precision, against the PyTorch reference with the weights that the graph holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bakeout.export.onnx_export import export_checkpoint
from bakeout.graph_passes.graph_file import load_graph
from bakeout.models.checkpoint import load_model

from tests.baked_parity import baked, compare, key_space_detection, neuron_adjust, plan_of, unbaked
from tests.dynamo_export import export_by_dynamo
from tests.genai_builder import FORMATS, build, stored_model
from tests.tiny_models import random_prompts, tiny_checkpoint

# All of one length: the builder's graphs take no padding on the left.
PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
HALF = 0.04
# A step at which two logits are as near to each other as that: seldom in float32, not so in float16.
MOST_TIES = {1e-3: 0.1, HALF: 0.3}

Exported = tuple[Path, PreTrainedModel]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads of 16, which GroupQueryAttention wants."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"), hidden=64)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """``exported("genai int4")``: the graph's directory, and a model with its weights, made once."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            exporter, form = name.split()
            directory = tmp_path_factory.mktemp("exported") / "model"
            if exporter == "genai":
                build(checkpoint, directory, form)
                made[name] = directory, stored_model(checkpoint, directory)
            elif exporter == "optimum":
                directory.mkdir()
                export_checkpoint(checkpoint, directory, "fp16" if form == "fp16" else "fp32")
                dtype = torch.float16 if form == "fp16" else torch.float32
                made[name] = directory, load_model(checkpoint, dtype).float()
            else:
                directory.mkdir()
                export_by_dynamo(checkpoint, directory / "model.onnx", int(form.removeprefix("opset")))
                shutil.copy(checkpoint / "config.json", directory)
                made[name] = directory, load_model(checkpoint)
        return made[name]

    return get


EXPORTS = [
    "optimum fp16",
    *(f"genai {form}" for form in FORMATS),
    pytest.param("dynamo opset20", marks=pytest.mark.slow),
    pytest.param("dynamo opset18", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind", ["neuron_adjust", "middle", "last"])
@pytest.mark.parametrize("name", EXPORTS)
def test_it_says_what_the_reference_says(exported: Callable[[str], Exported], name: str, kind: str) -> None:
    """Token for token, and another text than the unbaked graph's on at least half of the prompts."""
    directory, model = exported(name)
    half = name.endswith("fp16")
    intervention = (
        neuron_adjust(model, "threshold", PROMPTS, decisive=half)
        if kind == "neuron_adjust"
        else key_space_detection(model, (1,) if kind == "middle" else (3,), "query", PROMPTS)
    )
    plan = plan_of(model, [intervention], PROMPTS)
    tolerance = HALF if half else 1e-3
    exact = name.endswith("QDQ")
    parity = compare(
        model, plan, unbaked(directory, exact=exact), baked(directory, plan, exact=exact), PROMPTS, tolerance
    )
    assert parity.alike == parity.prompts, parity
    assert parity.ties < MOST_TIES[tolerance], parity
    assert parity.changed >= parity.prompts / 2, parity
    if kind != "neuron_adjust":
        assert 0 < parity.refused < parity.prompts, parity


@pytest.mark.slow
def test_source_paths_of_torchs_exporter_are_dropped(exported: Callable[[str], Exported]) -> None:
    directory, _ = exported("dynamo opset20")
    assert b"site-packages" in (directory / "model.onnx").read_bytes()
    model = load_graph(directory / "model.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.all_nodes())
