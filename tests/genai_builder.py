"""Graphs of the onnxruntime-genai builder, and tiny models whose weights are what such a graph holds."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model

# Name to the builder's precision, execution provider and extra options. Its fp16 is for CUDA; for the CPU it writes a
# graph that does not run.
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fp32": ("fp32", "cpu", {}),
    "fp16": ("fp16", "cuda", {}),
    # Products in float32: what is held against a reference is not to quantise its data too.
    "int4": ("int4", "cpu", {"int4_accuracy_level": "1"}),
    "QDQ": ("int4", "cpu", {"use_qdq": True}),
}


def build(checkpoint: Path, directory: Path, form: str) -> Path:
    """Run the builder offline on a checkpoint's directory; whatever the graph is for, genai is to run it on the CPU."""
    precision, provider, options = FORMATS[form]
    with _quiet():
        from onnxruntime_genai.models import builder

        builder.create_model(
            None, str(checkpoint), str(directory), precision, provider, str(directory / "cache"), **options
        )
    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = []
    path.write_text(json.dumps(config))
    return directory


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the builder prints, and the logging that it turns on for the whole process."""
    root = logging.root
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)


def stored_model(checkpoint: Path, directory: Path) -> PreTrainedModel:
    """The checkpoint's Llama with the weights of the builder's graph in ``directory``: rounded, or dequantised."""
    model = load_model(checkpoint)
    weights = weights_of(directory / "model.onnx")
    heads = model.config.num_attention_heads * model.config.head_dim
    shared = model.config.num_key_value_heads * model.config.head_dim
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(weights["model.embed_tokens.weight"]))
        model.lm_head.weight.copy_(torch.from_numpy(weights["lm_head.MatMul.weight"].T))
        for number, layer in enumerate(model.model.layers):
            named = {"o_proj": layer.self_attn.o_proj}
            query, key, value = np.split(
                weights[f"model.layers.{number}.attn.qkv_proj.MatMul.weight"], [heads, heads + shared], axis=1
            )
            layer.self_attn.q_proj.weight.copy_(torch.from_numpy(query.T))
            layer.self_attn.k_proj.weight.copy_(torch.from_numpy(key.T))
            layer.self_attn.v_proj.weight.copy_(torch.from_numpy(value.T))
            for part, modules in (("attn", named), ("mlp", dict(layer.mlp.named_children()))):
                for name, module in modules.items():
                    weight = weights.get(f"model.layers.{number}.{part}.{name}.MatMul.weight")
                    if weight is not None:
                        module.weight.copy_(torch.from_numpy(weight.T))
    return model


def weights_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """Constants of a graph by the name that they have unquantised, [in, out] for a product."""
    graph = onnx.load(path).graph
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name: array.astype(np.float32) for name, array in found.items() if array.dtype in (np.float32, np.float16)
    }
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            packed, scales = found[node.input[1]], found[node.input[2]].astype(np.float32)
            # [out, blocks, bytes], the lower half of a byte first; 8 stands for zero.
            digits = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), scales.shape[-1], -1)
            values = (digits.astype(np.float32) - 8) * scales.reshape(len(packed), -1, 1)
            inputs = next(attribute.i for attribute in node.attribute if attribute.name == "K")
            weights[node.input[1].removesuffix("_Q4")] = values.reshape(len(packed), -1)[:, :inputs].T
        elif node.op_type == "DequantizeLinear":
            values, scales = found[node.input[0]].astype(np.float32), found[node.input[1]].astype(np.float32)
            block = next(attribute.i for attribute in node.attribute if attribute.name == "block_size")
            weights[node.input[0].removesuffix("_DQ_Q4")] = values * np.repeat(scales, block, axis=0)[: len(values)]
    return weights
