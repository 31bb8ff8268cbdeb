"""Byte-level tokenizers of GGUF files, as their own tokenizer.json would be.

For files of the architecture ``llama``, transformers makes a SentencePiece tokenizer's frame around the byte-level
vocabulary of Llama 3, SmolLM2 and others, and splits every text as GPT-2 does. Llama 3's numbers and line breaks then
get other tokens than the model was taught (read in transformers 4.57), onnxruntime-genai finds no token for a space
(0.13 and 0.18, measured), and transformers 5.17 drops spaces.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from bakeout.models.checkpoint.gguf.gguf_header import GgufHeader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger("bakeout")
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


def as_byte_level(tokenizer: PreTrainedTokenizerFast, header: GgufHeader, path: object) -> PreTrainedTokenizerFast:
    """``tokenizer`` itself, or for a byte-level vocabulary in a SentencePiece frame one without that frame.

    Warns of a way to split texts that is not known here: the tokenizer then splits as GPT-2's does.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if header.text("tokenizer.ggml.model") != "gpt2" or not state["model"].get("byte_fallback"):
        return tokenizer
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
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **{role: getattr(tokenizer, role) for role in roles if getattr(tokenizer, role) is not None},
    )
