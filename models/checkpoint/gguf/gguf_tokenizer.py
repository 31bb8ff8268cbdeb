"""Tokenizers of GGUF files, as their own tokenizer.json would be.

For files of the architecture ``llama``, transformers makes a SentencePiece tokenizer's frame around the byte-level
vocabulary of Llama 3, SmolLM2 and others, and splits every text as GPT-2 does. Llama 3's numbers and line breaks then
get other tokens than the model was taught (read in transformers 4.57), onnxruntime-genai finds no token for a space
(0.13 and 0.18, measured), and transformers 5.17 drops spaces.

For files of the architecture ``phi3``, it makes a tokenizer that drops every space, line break and character without a
token of its own; tokens that a file of ``phi3``, ``starcoder2`` or Qwen marks as whole are split (4.57, measured), so
``<think>``, which the chat template of Qwen 3 writes.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeout.models.checkpoint.gguf.gguf_header import GgufHeader
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger("bakeout")
# What SentencePiece writes for a space.
_SPACE = "\u2581"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
_GPT2 = [{**_BYTES, "use_regex": True}]
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = [
    {
        "type": "Split",
        "pattern": {
            "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        },
        "behavior": "Isolated",
        "invert": False,
    },
    {**_BYTES, "use_regex": False},
]
# How a text is split before merging, by the name that the file has for it.
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": [_DIGITS, *_GPT2],
    "starcoder": [_DIGITS, *_GPT2],
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
# Architectures whose tokenizers transformers reads wrongly, whatever their kind.
_MISREAD = frozenset({"phi3", "starcoder2"})
# Architectures of which it splits whole tokens as text, and nothing else.
_SPLIT_APART = frozenset({"qwen2", "qwen2moe", "qwen3", "qwen3moe"})


def as_file_says(tokenizer: PreTrainedTokenizerFast, header: GgufHeader, path: Path) -> PreTrainedTokenizerFast:
    """``tokenizer`` itself, or one that splits texts as the file has it where transformers misread that.

    Warns of a way to split texts that is not known here: the tokenizer then splits as GPT-2's does. Raises
    ``BakeoutError`` for a kind of tokenizer that is not known of its architecture.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, architecture = header.text("tokenizer.ggml.model"), header.text("general.architecture")
    misread = architecture in _MISREAD
    if misread or architecture in _SPLIT_APART:
        state["added_tokens"] = _whole_tokens(state, path)
    if kind == "gpt2" and (misread or state["model"].get("byte_fallback")):
        return _as_byte_level(tokenizer, state, header, path)
    if architecture in _SPLIT_APART:
        return _with_state(type(tokenizer), tokenizer, state)
    if not misread:
        return tokenizer
    if (architecture, kind) == ("phi3", "llama"):
        return _as_sentence_pieces(tokenizer, state, header)
    raise BakeoutError(
        f"{path} has a tokenizer of the kind {kind}, which is not read for its architecture.",
        "Name the model's safetensors checkpoint.",
    )


def _whole_tokens(state: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The tokens that no text around them is merged with: those that the file marks so.

    How transformers has them is kept, and ones that it invents are left out.
    """
    from gguf import GGUFReader, TokenType

    reader = GGUFReader(path)
    tokens, types = (_array(reader, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    whole = {
        number: {
            "id": number,
            "content": tokens[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": marked == TokenType.CONTROL,
        }
        for number, marked in enumerate(types)
        if marked in (TokenType.CONTROL, TokenType.USER_DEFINED)
    }
    whole |= {token["id"]: token for token in state["added_tokens"] if token["id"] < len(tokens)}
    return [token for _, token in sorted(whole.items())]


def _array(reader: Any, key: str) -> list[Any]:
    field = reader.get_field(key)
    return [] if field is None else list(field.contents())


def _as_sentence_pieces(
    tokenizer: PreTrainedTokenizerFast, state: dict[str, Any], header: GgufHeader
) -> PreTrainedTokenizerFast:
    """With spaces in the pieces, and bytes for characters that have no token."""
    begins = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if begins else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": tokenizer.unk_token}
    state["normalizer"] = {"type": "Sequence", "normalizers": [*prefix, spaces]}
    return _with_state(type(tokenizer), tokenizer, state, legacy=False)


def _as_byte_level(
    tokenizer: PreTrainedTokenizerFast, state: dict[str, Any], header: GgufHeader, path: Path
) -> PreTrainedTokenizerFast:
    """Without a frame of another tokenizer around the bytes."""
    from transformers import PreTrainedTokenizerFast

    split = header.text("tokenizer.ggml.pre") or "default"
    if split not in _SPLITS:
        _LOG.warning(
            "%s: how `%s` splits texts is not known; they are split as GPT-2's are, and may get other tokens than the "
            "model was taught. Name its safetensors checkpoint where there is one.",
            path,
            split,
        )
    pieces = _SPLITS.get(split, _GPT2)
    # A word that is a token of Llama 3 is that token, whatever its merges.
    state["model"] |= {"byte_fallback": False, "fuse_unk": False, "ignore_merges": pieces is _LLAMA3}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pieces}
    state["decoder"] = {**_BYTES, "use_regex": True}
    state["normalizer"] = None
    return _with_state(PreTrainedTokenizerFast, tokenizer, state)


def _with_state(
    kind: type[PreTrainedTokenizerFast], tokenizer: PreTrainedTokenizerFast, state: dict[str, Any], **options: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer that splits as ``state`` has it, and is ``tokenizer`` in all else."""
    from tokenizers import Tokenizer

    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    return kind(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **{role: getattr(tokenizer, role) for role in roles if getattr(tokenizer, role) is not None},
        **options,
    )
