"""Exports compute what the checkpoint computes, in the type asked for, and are the same bytes anywhere."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from bakeout.export.exporting import onnx_export, optimum_exporter
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import ExporterName
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError

from tests.tiny_models import byte_tokenizer, random_prompts, tiny_model


def _logits(graph: Path, prompt: list[int]) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph)
    feeds = {
        "input_ids": np.array([prompt]),
        "attention_mask": np.ones((1, len(prompt)), np.int64),
        "position_ids": np.arange(len(prompt))[None],
    }
    for value in session.get_inputs()[3:]:
        dtype = np.float16 if "float16" in value.type else np.float32
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    return np.asarray(session.run(["logits"], feeds)[0])


def _float_types(graph: Path) -> set[int]:
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    initialisers = onnx.load(graph, load_external_data=False).graph.initializer
    return {tensor.data_type for tensor in initialisers if len(tensor.dims) == 2 and min(tensor.dims) > 1} & floats


def _half_constants(graph: Path) -> list[float]:
    nodes = onnx.load(graph, load_external_data=False).graph.node
    values = [onnx.numpy_helper.to_array(node.attribute[0].t) for node in nodes if node.op_type == "Constant"]
    return [float(value.min()) for value in values if value.dtype == np.float16 and value.size]


@pytest.mark.parametrize(
    ("dtype", "stored", "tolerance"),
    [("fp32", onnx.TensorProto.FLOAT, 1e-4), ("fp16", onnx.TensorProto.FLOAT16, 0.1)],
)
def test_an_export_computes_what_the_checkpoint_computes(
    llama_checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    dtype: Literal["fp32", "fp16"],
    stored: int,
    tolerance: float,
) -> None:
    graph = export_checkpoint(llama_checkpoint, tmp_path, dtype)
    assert capfd.readouterr() == ("", "")
    assert graph == tmp_path / "model.onnx"
    assert _float_types(graph) == {stored}
    if dtype == "fp16":
        # The CPU adds the mask in float32 whatever it is; a device would get infinity, and NaN where rows are padding.
        assert min(_half_constants(graph)) > np.finfo(np.float16).min / 2
    (prompt,) = random_prompts(1)
    with torch.no_grad():
        expected = load_model(llama_checkpoint)(torch.tensor([prompt])).logits.numpy()
    assert np.abs(_logits(graph, prompt) - expected).max() <= tolerance


@pytest.mark.parametrize("family", ["gemma", "gemma3_text"])
def test_an_embedding_that_is_the_heads_weight_too_is_stored_once(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    checkpoint = checkpoint_of(family)
    initialisers = onnx.load(export_checkpoint(checkpoint, tmp_path), load_external_data=False).graph.initializer
    assert [list(tensor.dims) for tensor in initialisers if 264 in tensor.dims] == [[264, 32]]
    (prompt,) = random_prompts(1)
    with torch.no_grad():
        expected = load_model(checkpoint)(torch.tensor([prompt])).logits.numpy()
    ids = np.array([prompt])
    logits = Runner(tmp_path).step(ids, np.ones_like(ids), None).logits
    assert np.abs(logits - expected).max() <= 1e-4


def test_an_export_is_the_same_anywhere_and_names_no_path(llama_checkpoint: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "a/second/place"):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        export_checkpoint(llama_checkpoint, directory)
        contents.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert contents[0] == contents[1]
    assert {"model.onnx", "model.onnx.data", "config.json", "generation_config.json"} <= contents[0].keys()
    graph = onnx.load(tmp_path / "one" / "model.onnx", load_external_data=False)
    assert all(not node.doc_string and not node.metadata_props for node in graph.graph.node)
    for content in contents[0].values():
        for path in (tmp_path, llama_checkpoint, Path(onnx.__file__).parents[1]):
            assert os.fsencode(path) not in content
    # The very tokenizer and chat template: Key Space Detection is sensitive to them.
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert contents[0][name] == (llama_checkpoint / name).read_bytes()


def test_an_architecture_that_the_exporter_does_not_know_is_said_so(tmp_path: Path) -> None:
    from transformers import CTRLConfig

    config = CTRLConfig(vocab_size=264, n_embd=16, dff=32, n_layer=1, n_head=2, n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "ctrl")
    byte_tokenizer().save_pretrained(tmp_path / "ctrl")
    (tmp_path / "out").mkdir()
    with pytest.raises(BakeoutError, match="The exporter optimum cannot export ctrl") as caught:
        export_checkpoint(tmp_path / "ctrl", tmp_path / "out", exporter="optimum")
    assert "\n" not in str(caught.value)


def test_an_export_holds_weights_once(tmp_path: Path) -> None:
    """What is written, transposed weights too, is the model's own memory; optimum's own file has none of it."""
    model = tiny_model("llama")
    graph = optimum_exporter.export(model, tmp_path, tmp_path, "fp32")
    tensors: list[Any] = [value.const_value for value in graph.graph.initializers.values()]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert {tensor.raw.untyped_storage().data_ptr() for tensor in tensors} == own
    assert not onnx.load(tmp_path / "model.onnx").graph.initializer


@pytest.mark.parametrize("exporter", ["optimum", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_an_export_lets_go_of_the_model(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: ExporterName
) -> None:
    loaded: list[Any] = []

    def load(*arguments: Any) -> Any:
        model = load_model(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(onnx_export, "load_model", load)
    export_checkpoint(llama_checkpoint, tmp_path, "fp16", exporter=exporter)
    assert [model() for model in loaded] == [None]
