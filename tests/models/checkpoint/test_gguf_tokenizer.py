"""Tokenizers of GGUF files: texts get the tokens that the file's own tokenizer gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bakeout.export.artifacts.model_source import find_checkpoint
from bakeout.models.checkpoint.gguf.gguf_checkpoint import gguf_checkpoint
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

from tests.gguf_files import BEGIN, BEGIN_ID, OWN, OWN_ID, write_gguf


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("llama-bpe", ["it", "\u0120is", "\u0120", "123", "45", ".\u010a\u010a", "Yes"]),
        ("smollm", ["it", "\u0120is", "\u0120", "1", "2", "3", "4", "5", ".", "\u010a", "\u010a", "Yes"]),
        ("default", ["it", "\u0120is", "\u012012345", ".", "\u010a", "\u010a", "Yes"]),
    ],
)
def test_texts_are_split_as_the_file_says(split: str, pieces: list[str], tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", split=split)))
    text = "it is 12345.\n\nYes"
    split_text = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in split_text] == pieces
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_way_to_split_texts_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "bakeout"):
        gguf_checkpoint(write_gguf(tmp_path / "m.gguf", split="of-our-own"))
    assert "how `of-our-own` splits texts is not known" in caplog.text


def test_no_frame_of_another_tokenizer_is_left(tmp_path: Path) -> None:
    directory = gguf_checkpoint(write_gguf(tmp_path / "m.gguf"))
    written = json.loads((directory / "tokenizer.json").read_text())
    # By these onnxruntime-genai and transformers 5 take it for SentencePiece's, and find no spaces.
    assert not written["model"]["byte_fallback"]
    assert written["decoder"]["type"] == "ByteLevel"
    assert read_json(directory / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_pieces_of_phi_3_hold_spaces_and_bytes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", family="phi3", pieces=True, begins=True, vocabulary=320)
    directory = gguf_checkpoint(path)
    tokenizer: Any
    for tokenizer in (load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)):
        chat = "<|user|>\nthe heat\n\u00e9<|end|>" + OWN
        pieces = ["<s>", "<|user|>", "\u2581the", "\u2581", "he", "a", "t", "<0x0A>", "<0xC3>", "<0xA9>", "<|end|>"]
        tokens = tokenizer.encode(chat)
        assert [str(tokenizer.convert_ids_to_tokens(token)) for token in tokens] == [*pieces, OWN]
        # The line break behind a mark belongs to it, as in the original.
        assert tokenizer.decode(tokens[2:-2]) == "the heat\n\u00e9"
        # transformers gives every Phi-3 the same marks, whether the file has them or not.
        assert len(tokenizer) == 320
        assert tokenizer.decode(tokenizer.encode(" the  heat ", add_special_tokens=False)) == " the  heat "


def test_whole_tokens_of_qwen_are_not_split(tmp_path: Path) -> None:
    """So Qwen 3's `<think>`; tokens that transformers invents, which no file has, are gone."""
    tokenizer: Any = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", family="qwen2", split="qwen2")))
    own_pieces = tokenizer.convert_tokens_to_ids(["a", "\u0120"])
    assert tokenizer.encode(f"a {OWN}{BEGIN}") == [*own_pieces, OWN_ID, BEGIN_ID]
    assert len(tokenizer) == 264


@pytest.mark.parametrize("family", ["phi3", "starcoder2"])
def test_bytes_of_misread_architectures_are_split_as_the_file_says(family: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", family=family, split="starcoder")
    tokenizer: Any = load_tokenizer(gguf_checkpoint(path))
    text = f"the  12\n{BEGIN}\u00e9"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert BEGIN_ID in tokens
    assert tokens[:3] == tokenizer.convert_tokens_to_ids(["th", "e", "\u0120"])


def test_another_kind_of_tokenizer_of_a_misread_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", family="phi3")
    path.write_bytes(
        path.read_bytes().replace(b"\x04\x00\x00\x00\x00\x00\x00\x00gpt2", b"\x04\x00\x00\x00\x00\x00\x00\x00rwkv")
    )
    with pytest.raises(BakeoutError, match="has a tokenizer of the kind rwkv, which is not read"):
        find_checkpoint(path)
