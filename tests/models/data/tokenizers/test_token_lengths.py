"""A token of thousands of characters takes minutes to add, and is refused before any library tries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bakeout.models.checkpoint.gguf.gguf_header import read_gguf_header
from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError

from tests.gguf_files import write_gguf
from tests.tiny_models import byte_tokenizer

# A hundred times what takes seconds: without the check, a test would not end.
_LONG = "ab" * 500_000
_QUOTED = '"' * 1_000_000


def _added(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": True}


@pytest.mark.parametrize("text", [_LONG, _QUOTED], ids=["letters", "quotes"])
@pytest.mark.parametrize("load", [JsonTokenizer, load_tokenizer], ids=["alone", "transformers"])
@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer.json", "added_tokens", lambda text: [{"id": 900, **_added(text)}]),
        ("tokenizer_config.json", "added_tokens_decoder", lambda text: {"900": _added(text)}),
        ("tokenizer_config.json", "eos_token", lambda text: text),
        ("tokenizer_config.json", "additional_special_tokens", lambda text: [text]),
        ("tokenizer_config.json", "extra_special_tokens", lambda text: {"image_token": text}),
        ("special_tokens_map.json", "sep_token", _added),
        ("added_tokens.json", "x", lambda text: {text: 900}),
    ],
)
def test_a_giant_token_is_refused(
    file: str, key: str, value: Callable[[str], Any], load: Callable[[Path], object], text: str, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | (value(text) if file == "added_tokens.json" else {key: value(text)})))
    with pytest.raises(BakeoutError, match=rf"{file}: a token has 1000000 characters, more than 1000"):
        load(tmp_path)


def test_other_texts_may_be_as_long(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["x" * 1_000])
    tokenizer.chat_template = f"{{# {_LONG} #}}{{{{ messages[0].content }}}}"
    tokenizer.save_pretrained(tmp_path)
    for load in (JsonTokenizer, load_tokenizer):
        assert load(tmp_path).encode(f"a{'x' * 1_000}")[-1] == len(tokenizer) - 1


def test_a_giant_token_in_a_gguf_file_is_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(["a", "b" * 1_001])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BakeoutError, match="a token has 1001 bytes, more than 1000"):
        read_gguf_header(tmp_path / "model.gguf")
    assert read_gguf_header(write_gguf(tmp_path / "other.gguf", layers=1)).tensors
