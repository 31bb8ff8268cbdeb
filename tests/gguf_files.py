"""Tiny Llamas as GGUF files, with a tokenizer of bytes and two merges, written by gguf-py as llama.cpp writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from tests.tiny_models import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TEXT_ID, PADDING, PADDING_ID, tiny_model

BEGIN, BEGIN_ID = "<|begin|>", 260
NAME, LICENSE = "Tiny mist 0.1", "apache-2.0"
_VALUES = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
_TENSORS = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    begins: bool = False,
    layers: int = 4,
    context: int = 512,
    architecture: str = "llama",
    split: str = "default",
    more: dict[str, np.ndarray] | None = None,
    metadata: dict[str, str | int | float] | None = None,
) -> Path:
    """A tiny Llama whose matrices are quantised to ``kind``; ``begins``: texts begin with ``BEGIN``.

    ``split``: the file's name of how texts are split before merging.
    """
    model = tiny_model("llama", layers=layers)
    config: Any = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    writer.add_name(NAME)
    writer.add_license(LICENSE)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_rope_base(config))
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    _add_tokenizer(writer, config.vocab_size, begins, split)
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, _VALUES[type(value)])
    for name, values in {**_tensors(model), **(more or {})}.items():
        if values.ndim > 1:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _rope_base(config: Any) -> float:
    """Transformers 5 keeps what rotary positions need together."""
    parameters = getattr(config, "rope_parameters", None)
    return float(parameters["rope_theta"] if parameters else config.rope_theta)


def _add_tokenizer(writer: GGUFWriter, size: int, begins: bool, split: str) -> None:
    tokens = {PADDING_ID: PADDING, END_OF_TEXT_ID: END_OF_TEXT, 258: "th", 259: "he", BEGIN_ID: BEGIN}
    tokens |= {number + 2: letter for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {PADDING_ID, END_OF_TEXT_ID, BEGIN_ID}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([tokens.get(number, f"<unused{number}>") for number in range(size)])
    writer.add_token_types([TokenType.CONTROL if number in special else TokenType.NORMAL for number in range(size)])
    writer.add_token_merges(["t h", "h e"])
    writer.add_bos_token_id(BEGIN_ID)
    writer.add_eos_token_id(END_OF_TEXT_ID)
    writer.add_pad_token_id(PADDING_ID)
    writer.add_add_bos_token(begins)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config: Any = model.config
    tensors = {}
    for name, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        own = name.removeprefix("model.")
        if own in _TENSORS:
            tensors[_TENSORS[own]] = values
            continue
        _, layer, part = own.split(".", 2)
        kind = _BLOCK[part.removesuffix(".weight")]
        if kind in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if kind == "attn_q" else config.num_key_value_heads
            # llama.cpp rotates neighbouring pairs.
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        tensors[f"blk.{layer}.{kind}.weight"] = np.ascontiguousarray(values)
    return tensors
