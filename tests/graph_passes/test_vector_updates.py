"""Norms, biases, embeddings and heads changed in graphs, against the reference: token for token."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from transformers import PreTrainedModel

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph
from bakeout.graph_passes.weight_edits import write_edited_tensors
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.plan import Plan, VectorUpdate

from tests.baked_parity import compare, key_space_detection, unbaked
from tests.exported_graphs import HALF, PROMPTS, export
from tests.tiny_models import tiny_checkpoint
from tests.weight_plans import ends_update, low_rank_update, plan_of, vary_vectors, vector_update

EXPORTS = ("optimum fp32", "genai fp32", "dynamo opset20", "optimum fp16")
# `make test` has these alone.
QUICK = ("optimum fp32", "genai fp32")


def trained(family: str, directory: Path, **settings: Any) -> Path:
    """A tiny checkpoint whose norms and biases are no ones and zeros."""
    checkpoint = tiny_checkpoint(family, directory, **settings)
    vary_vectors(load_model(checkpoint)).save_pretrained(checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """``exported("genai fp32")``: the graph's directory, and a model with its weights, made once."""
    checkpoint = trained("llama", tmp_path_factory.mktemp("llama"), hidden=64, attention_bias=True)
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def get(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in made:
            made[name] = export(checkpoint, tmp_path_factory.mktemp("exported") / "model", name)
        return made[name]

    return get


def _baked(directory: Path, plan: Plan, output: Path) -> Runner:
    """The plan in the graph, beside an edited copy of its data."""
    output.mkdir()
    graph = load_graph(directory / "model.onnx")
    apply_plan(graph, plan)
    for name, path in data_files(graph).items():
        shutil.copyfile(path, output / name)
    write_edited_tensors(graph, output)
    (output / "model.onnx").write_bytes(graph_bytes(graph))
    for path in directory.glob("*.json"):
        shutil.copyfile(path, output / path.name)
    return Runner(output, threads=1)


def _require_parity(directory: Path, model: PreTrainedModel, plan: Plan, output: Path, tolerance: float) -> None:
    parity = compare(model, plan, unbaked(directory), _baked(directory, plan, output), PROMPTS, tolerance)
    assert parity.alike == parity.prompts and parity.changed >= parity.prompts / 2, parity
    assert parity.ties < (0.3 if tolerance == HALF else 0.1), parity


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EXPORTS]
)
def test_it_says_what_the_reference_says(
    exported: Callable[[str], tuple[Path, PreTrainedModel]], name: str, tmp_path: Path
) -> None:
    directory, model = exported(name)
    plan = plan_of(model, "ab" * 32, vector_update(model), low_rank_update(model), ends_update(model))
    _require_parity(directory, model, plan, tmp_path / "baked", HALF if name.endswith("fp16") else 1e-3)


@pytest.mark.parametrize(
    "family",
    [
        # Norms that count from 0; biases behind Gemm.
        "gemma",
        "gpt2",
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in ("gemma2", "gpt_neox", "olmo2", "opt", "phi", "qwen2", "qwen3", "stablelm")
        ),
    ],
)
def test_norms_and_biases_of_other_forms(family: str, tmp_path: Path) -> None:
    checkpoint = trained(family, tmp_path / "checkpoint")
    (tmp_path / "export").mkdir()
    export_checkpoint(checkpoint, tmp_path / "export", "fp32")
    model = load_model(checkpoint)
    # Of gemma and gpt2, the head is the embedding.
    plan = plan_of(model, "ab" * 32, vector_update(model), ends_update(model))
    _require_parity(tmp_path / "export", model, plan, tmp_path / "baked", 1e-3)


def test_with_a_check_behind_them(exported: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path) -> None:
    directory, model = exported("optimum fp32")
    check = key_space_detection(model, (1,), "query", PROMPTS)
    plan = plan_of(model, "ab" * 32, vector_update(model, scale=0.05), check)
    parity = compare(model, plan, unbaked(directory), _baked(directory, plan, tmp_path / "baked"), PROMPTS)
    assert parity.alike == parity.prompts and parity.ties < 0.1, parity


def test_vectors_that_are_alike_go_by_their_names(exported: Callable[[str], tuple[Path, PreTrainedModel]]) -> None:
    directory, model = exported("optimum fp32")
    update = vector_update(model)
    alike = replace(update, vectors=tuple(replace(each, before=np.ones_like(each.before)) for each in update.vectors))
    plan = plan_of(model, "ab" * 32, alike)

    def graph_of_ones() -> ir.Model:
        graph = load_graph(directory / "model.onnx")
        for value in graph.graph.initializers.values():
            if value.shape is not None and len(value.shape) == 1 and value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=value.name)
        return graph

    for receipt in apply_plan(graph_of_ones(), plan):
        assert receipt.tensor.endswith(receipt.detail["role"].removeprefix("model."))
    graph = graph_of_ones()
    graph.graph.initializers["model.layers.1.input_layernorm.weight"].name = "renamed"
    with pytest.raises(
        GraphError, match=r"layers.1.input_layernorm.weight: the graph holds no vector of its values that"
    ):
        apply_plan(graph, plan)


def test_what_a_graph_does_not_hold_is_named(
    exported: Callable[[str], tuple[Path, PreTrainedModel]], llama_checkpoint: Path
) -> None:
    directory, model = exported("optimum fp32")
    update = vector_update(model)
    first, *others = update.vectors
    odd = VectorUpdate("random", (replace(first, before=first.before + np.float32(3)), *others))
    with pytest.raises(GraphError, match=f"{first.parameter}: the graph holds no vector"):
        apply_plan(load_graph(directory / "model.onnx"), plan_of(model, "ab" * 32, odd))
