"""Mixtures in graphs of the onnxruntime-genai builder: tiny gpt-oss models with the weights that a graph holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model

from tests.genai_builder import weights_of
from tests.tiny_models import tiny_checkpoint

# [experts, in, out] in the model, [experts, out, in] in the graph.
_EXPERTS = ("gate_up_proj", "down_proj")


def mixture_checkpoint(directory: Path) -> Path:
    """A tiny gpt-oss that the builder exports as it is: ``directory``."""
    # GroupQueryAttention wants heads of a multiple of 16.
    tiny_checkpoint("gpt_oss", directory, hidden=64)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    # Where the builder looks for it: it overlooks what `rope_scaling` says.
    config["original_max_position_embeddings"] = config["rope_scaling"]["original_max_position_embeddings"]
    path.write_text(json.dumps(config))
    return directory


def stored_mixture(checkpoint: Path, directory: Path) -> PreTrainedModel:
    """The checkpoint's gpt-oss with the weights of the builder's graph in ``directory``, as they are or dequantised."""
    model = load_model(checkpoint)
    graph = onnx.load(directory / "model.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = weights_of(directory / "model.onnx")
    heads = model.config.num_attention_heads * model.config.head_dim
    shared = model.config.num_key_value_heads * model.config.head_dim
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(weights["model.embed_tokens.weight"]))
        model.lm_head.weight.copy_(torch.from_numpy(weights["lm_head.MatMul.weight"].T))
        for number, layer in enumerate(model.model.layers):
            part = f"model.layers.{number}"
            attention = layer.self_attn
            projections = np.split(weights[f"{part}.attn.qkv_proj.MatMul.weight"], [heads, heads + shared], axis=1)
            for module, weight in zip((attention.q_proj, attention.k_proj, attention.v_proj), projections, strict=True):
                module.weight.copy_(torch.from_numpy(weight.T))
            attention.o_proj.weight.copy_(torch.from_numpy(weights[f"{part}.attn.o_proj.MatMul.weight"].T))
            layer.mlp.router.weight.copy_(torch.from_numpy(weights[f"{part}.moe.router.MatMul.weight"].T))
            for name in _EXPERTS:
                experts = _experts(constants, f"{part}.moe.experts.{name}")
                layer.mlp.experts.get_parameter(name).copy_(torch.from_numpy(experts.swapaxes(1, 2)))
    return model


def _experts(constants: Mapping[str, NDArray[np.generic]], name: str) -> NDArray[np.float32]:
    """One product of all experts: float32 [experts, out, in]."""
    if f"{name}.weight" in constants:
        return constants[f"{name}.weight"].astype(np.float32)
    packed, scales = constants[f"{name}.qweight"].astype(np.uint8), constants[f"{name}.scales"].astype(np.float32)
    # [experts, out, bytes], the lower half of a byte first; 8 stands for zero. Scales are [experts, out, blocks].
    digits = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, -1)
    values: NDArray[np.float32] = (digits.astype(np.float32) - 8) * scales[..., None]
    return values.reshape(*packed.shape[:2], -1)
