"""Attention's weights in graphs: where torch has them, and changed as peft changes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.importing.import_plan import import_plan
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph
from bakeout.graph_passes.graph.weights.attention import attention_layers
from bakeout.graph_passes.weight_edits import write_edited_tensors
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.plan import attention_weight

from tests import genai_builder
from tests.conftest import CheckpointOf
from tests.dynamo_export import export_by_dynamo
from tests.imported_sources import IDS, peft_adapter
from tests.tiny_models import tiny_checkpoint

EXPORTERS: Mapping[str, Callable[[Path, Path], object]] = {
    "optimum": lambda checkpoint, directory: export_checkpoint(checkpoint, directory, "fp32"),
    "dynamo": lambda checkpoint, directory: export_by_dynamo(checkpoint, directory / "model.onnx", 18),
    "genai": lambda checkpoint, directory: genai_builder.build(checkpoint, directory, "fp32"),
}
QUICK = [("optimum", "llama"), ("optimum", "gpt2"), ("genai", "llama")]
# genai's qwen3 normalises between the products and attention.
SLOW = [("dynamo", "llama"), ("genai", "qwen3")] + [
    ("optimum", family)
    for family in ("bloom", "falcon", "gemma2", "gpt_neo", "gpt_neox", "gptj", "mixtral", "mpt", "opt", "phi", "phi3")
]


@pytest.mark.parametrize(
    ("exporter", "family"), [*QUICK, *(pytest.param(*graph, marks=pytest.mark.slow) for graph in SLOW)]
)
def test_weights_are_where_torch_has_them_and_change_as_in_peft(
    exporter: str, family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    # GroupQueryAttention wants heads of 16.
    checkpoint = tiny_checkpoint(family, tmp_path / "base", hidden=64) if exporter == "genai" else checkpoint_of(family)
    for directory in ("graph", "edited"):
        (tmp_path / directory).mkdir()
    EXPORTERS[exporter](checkpoint, tmp_path / "graph")
    graph = load_graph(tmp_path / "graph" / "model.onnx")
    layers = attention_layers(graph.graph, read_anatomy(graph))
    modules = dict(load_model(checkpoint).named_modules())
    places = {name: place for name in modules if (place := attention_weight(name)) is not None}
    assert len(places) in (2 * len(layers), 4 * len(layers))
    for name, (layer, role) in places.items():
        location, module = layers[layer].locate(role), modules[name]
        assert location.initialiser.const_value is not None and isinstance(module, nn.Linear | Conv1D)
        values = location.weight_in(location.initialiser.const_value.numpy())
        weight = module.weight.detach().numpy()
        np.testing.assert_array_equal(values, weight.T if isinstance(module, Conv1D) else weight)
        assert values.shape == location.shape
    expected = peft_adapter(checkpoint, tmp_path / "adapter", target_modules=list(places))
    receipts = apply_plan(graph, import_plan(tmp_path / "adapter", str(checkpoint)))
    assert [(receipt.layer, receipt.detail["role"]) for receipt in receipts] == sorted(places.values())
    for data, path in data_files(graph).items():
        shutil.copyfile(path, tmp_path / "edited" / data)
    write_edited_tensors(graph, tmp_path / "edited")
    (tmp_path / "edited" / "model.onnx").write_bytes(graph_bytes(graph))
    shutil.copyfile(checkpoint / "config.json", tmp_path / "edited" / "config.json")
    computed = Runner(tmp_path / "edited" / "model.onnx").logits(IDS.tolist())
    assert (torch.from_numpy(np.stack(computed)) - expected).abs().max() < 2e-3


def test_a_packed_product_that_does_not_say_its_heads_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", tmp_path / "base", hidden=64)
    graph = load_graph(genai_builder.build(checkpoint, tmp_path / "graph", "fp32") / "model.onnx")
    for node in graph.graph:
        if node.op_type == "GroupQueryAttention":
            del node.attributes["kv_num_heads"]
    layers = attention_layers(graph.graph, read_anatomy(graph))
    assert layers[0].locate("qkv").rows is None
    with pytest.raises(GraphError, match="how they lie in it"):
        layers[0].locate("k")


def test_keys_that_a_block_shares_are_the_other_blocks() -> None:
    """As in Gemma 3n: an edit of the second block's keys must not land in the first one's."""
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> None:
        nodes.append(onnx.helper.make_node(kind, inputs.split(), [output], name=output, **attributes))

    node("MatMul", "x k0", "key")
    node("Transpose", "key", "turned", perm=[0, 2, 1])
    node("MatMul", "x v0", "value")
    for block, read in enumerate(("x", "y0")):
        node("MatMul", f"{read} q{block}", f"query{block}")
        node("MatMul", f"query{block} turned", f"scores{block}")
        node("Softmax", f"scores{block}", f"shares{block}", axis=-1)
        node("MatMul", f"shares{block} value", f"heads{block}")
        node("MatMul", f"heads{block} o{block}", f"y{block}")
    weights = [
        onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), name) for name in ["q0", "k0", "v0", "o0", "q1", "o1"]
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["rows", "tokens", 8]) for name in ("x", "y1")]
    graph = onnx.helper.make_graph(nodes, "shared", ends[:1], ends[1:], weights)
    loaded = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    anatomy = SimpleNamespace(layers=(0, 1), routers=())
    first, second = attention_layers(loaded.graph, anatomy)  # type: ignore[arg-type]
    assert [str(first.locate(role).initialiser.name) for role in ("q", "k", "v", "o")] == ["q0", "k0", "v0", "o0"]
    assert [str(second.locate(role).initialiser.name) for role in ("q", "o")] == ["q1", "o1"]
    for role in ("k", "v"):
        with pytest.raises(GraphError, match=f"Attention of layer 1, {role}: no single linear layer"):
            second.locate(role)
