"""Tiny models as GGUF files, written by gguf-py as llama.cpp writes them.

Their tokenizer is of bytes and two merges, or, as Phi-3's, of SentencePiece's pieces.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from tests.tiny_models import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TEXT_ID, PADDING, PADDING_ID, tiny_model

BEGIN, BEGIN_ID = "<|begin|>", 260
# A token that is whole, and no special one.
OWN, OWN_ID = "<|own|>", 261
NAME, LICENSE = "Tiny mist 0.1", "apache-2.0"
_VALUES = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
# Of a SentencePiece tokenizer: tokens by id, those that are whole, and merged pieces, the best first.
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *string.ascii_lowercase]
MERGED = ["th", "he", "\u2581th", "\u2581the"]
MARKS = ["<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", OWN]


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    begins: bool = False,
    layers: int = 4,
    context: int = 512,
    family: str = "llama",
    pieces: bool = False,
    split: str = "default",
    more: dict[str, np.ndarray] | None = None,
    metadata: dict[str, str | int | float] | None = None,
    **settings: Any,
) -> Path:
    """A tiny model whose matrices are quantised to ``kind``; ``begins``: texts begin with ``BEGIN``.

    ``split``: the file's name of how texts are split before merging. ``pieces``: its tokenizer is of these.
    ``settings``: as of ``tiny_model``.
    """
    model = tiny_model(family, layers=layers, **settings)
    config: Any = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, family)
    writer.add_name(NAME)
    writer.add_license(LICENSE)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    writer.add_rope_freq_base(_rope_base(config))
    if f"{family}.rope.dimension_count" not in (metadata or {}):
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if pieces:
        _add_pieces(writer, config.vocab_size, begins)
    else:
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
    tokens = {PADDING_ID: PADDING, END_OF_TEXT_ID: END_OF_TEXT, 258: "th", 259: "he", BEGIN_ID: BEGIN, OWN_ID: OWN}
    tokens |= {number + 2: letter for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {PADDING_ID, END_OF_TEXT_ID, BEGIN_ID}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([tokens.get(number, f"<unused{number}>") for number in range(size)])
    kinds = {OWN_ID: TokenType.USER_DEFINED, **dict.fromkeys(special, TokenType.CONTROL)}
    writer.add_token_types([kinds.get(number, TokenType.NORMAL) for number in range(size)])
    writer.add_token_merges(["t h", "h e"])
    writer.add_bos_token_id(BEGIN_ID)
    writer.add_eos_token_id(END_OF_TEXT_ID)
    writer.add_pad_token_id(PADDING_ID)
    writer.add_add_bos_token(begins)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_pieces(writer: GGUFWriter, size: int, begins: bool) -> None:
    tokens = [*PIECES, *MERGED, *MARKS]
    kinds = {"<unk>": TokenType.UNKNOWN, OWN: TokenType.USER_DEFINED}
    kinds |= dict.fromkeys(PIECES[3:259], TokenType.BYTE)
    kinds |= dict.fromkeys(["<s>", "</s>", *MARKS[:-1]], TokenType.CONTROL)
    end = tokens.index("<|endoftext|>")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"<unused{number}>" for number in range(len(tokens), size))])
    writer.add_token_scores([float(-number) for number in range(size)])
    writer.add_token_types(
        [int(kinds.get(token, TokenType.NORMAL)) for token in tokens] + [int(TokenType.UNUSED)] * (size - len(tokens))
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(begins)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config: Any = model.config
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    tensors = {}
    for own, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        assert name is not None, own
        if config.model_type == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            # llama.cpp rotates neighbouring pairs.
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        tensors[name] = np.ascontiguousarray(values)
    return tensors
