"""Exporters write tensors beside a large graph, those of attributes among them: an artifact refers to its own files.

Graphs reach that size at 2 GB. Here small ones are written as if they had.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data, set_external_data
from transformers import PreTrainedModel

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions, DType
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.network.families import identity

from tests.baked_parity import plan_of
from tests.exported_graphs import EXPORTS, PROMPTS, export, intervention_of
from tests.tiny_models import tiny_checkpoint

Exported = tuple[Path, PreTrainedModel]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads of 64: their rotary frequencies are large enough for optimum to write them beside a graph."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"), hidden=256)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """``exported("genai int4")``: the graph's directory, and a model with its weights."""
    return lambda name: export(checkpoint, tmp_path_factory.mktemp("exported") / "model", name)


def _attributes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute
            yield from _attributes(attribute.g.node)


def _tensors(model: onnx.ModelProto) -> tuple[list[onnx.TensorProto], list[onnx.TensorProto]]:
    """Initialisers, and tensors of attributes: of the graph, its subgraphs and its functions."""
    attributes = [each for owner in (model.graph, *model.functions) for each in _attributes(owner.node)]
    graphs = [model.graph, *(attribute.g for attribute in attributes)]
    initialisers = [tensor for graph in graphs for tensor in graph.initializer]
    return initialisers, [attribute.t for attribute in attributes if attribute.HasField("t")]


def _files(directory: Path) -> tuple[set[str], set[str]]:
    """The files that the initialisers of the graph in ``directory`` refer to, and those that its attributes do."""
    initialisers, attributes = (
        {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        for tensors in _tensors(onnx.load(directory / "model.onnx", load_external_data=False))
    )
    return initialisers, attributes


def _write_attributes_beside(directory: Path) -> None:
    """Write the weights and every attribute of the graph in ``directory`` into one file, in place of its own files."""
    old = _files(directory)[0]
    model = onnx.load(directory / "model.onnx")
    # ONNX Runtime wants shapes, which are small, in the graph.
    convert_model_to_external_data(model, location="everything.bin", size_threshold=100)
    for tensor in _tensors(model)[1]:
        set_external_data(tensor, "everything.bin")
    onnx.save(model, directory / "model.onnx")
    for name in old:
        (directory / name).unlink()
    initialisers, attributes = _files(directory)
    # dynamo's graphs hold no tensor in an attribute.
    assert initialisers == {"everything.bin"} >= attributes


def _alone(directory: Path, place: Path) -> Path:
    """The artifact moved to ``place``, with nothing of what it was made from left."""
    directory.rename(place)
    return place


# One of each exporter that `make test` has time for.
QUICK = ("optimum fp32", "genai int4")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in EXPORTS]
)
def test_an_artifact_of_any_exporters_graph_stands_alone(
    exported: Callable[[str], Exported], tmp_path: Path, name: str
) -> None:
    source, model = exported(name)
    plan = plan_of(model, [intervention_of(model, "middle")], PROMPTS)
    whole = bake(source, plan, tmp_path / "whole").directory
    _write_attributes_beside(source)
    baked = bake(source, plan, tmp_path / "baked").directory
    shutil.rmtree(source)
    alone = _alone(baked, tmp_path / "alone")
    assert _files(alone) == ({"everything.bin"}, set())
    assert (alone / "everything.bin").is_file()
    assert Runner(alone).generate(PROMPTS, 8) == Runner(whole).generate(PROMPTS, 8)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_optimums_export_of_a_large_checkpoint_is_that_of_a_small_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    model = load_model(checkpoint)
    plan = plan_of(model, [intervention_of(model, "middle")], PROMPTS)
    plan = replace(plan, model=identity(model, weights_digest(checkpoint)))
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        export_checkpoint(checkpoint, tmp_path / name, dtype)
        monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "large" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()
    alone = _alone(bake(checkpoint, plan, tmp_path / "baked", BakeOptions(dtype=dtype)).directory, tmp_path / "alone")
    assert _files(alone) == ({"model.onnx.data"}, set())
    assert len(Runner(alone).generate(PROMPTS[:1], 8)) == 1
