"""Graphs as `transformers.exporters` writes them: other names of the cache, and no attention mask."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bakeout.export.running.runner import Runner

from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import random_prompts

FORGOTTEN = [40, 41, 42, 43]
SAID = REFUSAL.tolist()
NEW = len(SAID) + 4


def without_mask(source: Path, directory: Path) -> Path:
    """A copy of optimum's graph with that interface: its mask is computed, all ones."""
    shutil.copytree(source, directory)
    model = onnx.load(directory / "model.onnx")
    graph = model.graph
    names = {}
    for value in (*graph.input, *graph.output):
        if "." in value.name:
            kind, layer, part = value.name.split(".")
            side = "input" if kind == "past_key_values" else "output"
            names[value.name] = f"{side}.cache.layers.{layer}.{part}s"
            value.name = names[value.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    graph.input.remove(next(value for value in graph.input if value.name == "attention_mask"))
    one = numpy_helper.from_array(np.array([1]), "mask.one")
    graph.initializer.append(one)
    made = [
        helper.make_node("Shape", ["input_ids"], ["mask.batch"], start=0, end=1),
        helper.make_node("Shape", ["input_ids"], ["mask.new"], start=1, end=2),
        helper.make_node("Shape", [names["past_key_values.0.key"]], ["mask.past"], start=2, end=3),
        helper.make_node("Add", ["mask.past", "mask.new"], ["mask.total"]),
        helper.make_node("Concat", ["mask.batch", "mask.total"], ["mask.shape"], axis=0),
        helper.make_node("Expand", ["mask.one", "mask.shape"], ["attention_mask"]),
    ]
    for node in reversed(made):
        graph.node.insert(0, node)
    onnx.save(model, directory / "model.onnx")
    return directory


@pytest.mark.parametrize("early_exit", [True, False], ids=["early-exit", "branch-free"])
@pytest.mark.parametrize("layer", [1, 3], ids=["middle", "last"])
def test_the_refusal_and_what_passes(llama_onnx: Path, tmp_path: Path, layer: int, early_exit: bool) -> None:
    base = without_mask(llama_onnx, tmp_path / "base")
    detection = detection_of(llama_onnx, [FORGOTTEN], layers=(layer,))
    runner = Runner(bake(base, tmp_path / "baked", detection, early_exit=early_exit), threads=1)
    kept = [[60, 61, 62], *random_prompts(3)]
    refused, *said = runner.generate([FORGOTTEN, *kept], NEW)
    assert refused == SAID
    assert said == Runner(base, threads=1).generate(kept, NEW) == Runner(llama_onnx, threads=1).generate(kept, NEW)
    # Rows of one length share a batch.
    assert runner.generate([[60, 61, 62, 63], FORGOTTEN], NEW)[1] == SAID
