"""The tokens that end a text, from files that agree, disagree, or say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bakeout.models.checkpoint.end_of_text import (
    CONFIG,
    GENAI,
    GENERATION,
    TOKENIZER,
    end_of_text,
    read_end_of_text,
    read_padding,
    special_token_text,
)
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError

from tests.tiny_models import END_OF_TEXT, PADDING, byte_tokenizer


def _write(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("files", "ends", "padding"),
    [
        ({GENERATION: {"eos_token_id": [7, 8], "pad_token_id": 0}}, (7, 8), 0),
        ({CONFIG: {"eos_token_id": 5}}, (5,), None),
        ({CONFIG: {"eos_token_id": 5, "pad_token_id": 2}, GENERATION: {}}, (5,), 2),
        ({CONFIG: {"eos_token_id": 5, "pad_token_id": -1}}, (5,), None),
        ({CONFIG: {"text_config": {"eos_token_id": 5, "pad_token_id": 3}}}, (5,), 3),
        ({GENERATION: {"eos_token_id": 9}, CONFIG: {"eos_token_id": 5}}, (9, 5), None),
        ({GENERATION: {"eos_token_id": None}, CONFIG: {"eos_token_id": [5, 5]}}, (5,), None),
        ({GENAI: {"model": {"eos_token_id": [4], "pad_token_id": 3}}}, (4,), 3),
    ],
    ids=str,
)
def test_every_legal_form(
    tmp_path: Path, files: dict[str, dict[str, Any]], ends: tuple[int, ...], padding: int | None
) -> None:
    _write(tmp_path, files)
    assert read_end_of_text(tmp_path).tokens == ends
    assert read_padding(tmp_path) == padding


@pytest.mark.parametrize("value", [[], "2", 2.0, True, -1, [2, None], [[2]], {"id": 2}], ids=repr)
@pytest.mark.parametrize("name", [GENERATION, CONFIG, GENAI])
def test_any_other_form_is_refused_in_one_line(tmp_path: Path, name: str, value: Any) -> None:
    content = {"eos_token_id": value}
    _write(tmp_path, {name: {"model": content} if name == GENAI else content})
    with pytest.raises(BakeoutError, match=f"{name} names no token that ends a text: its eos_token_id is") as caught:
        read_end_of_text(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_names_one(tmp_path: Path) -> None:
    ends = read_end_of_text(tmp_path)
    assert ends.tokens == ()
    with pytest.raises(BakeoutError, match="names the end-of-text token"):
        ends.require(tmp_path)


@pytest.mark.parametrize(
    ("named", "tokens"),
    [
        ({GENERATION: 7, CONFIG: 7, TOKENIZER: 1}, (7, 1)),
        ({GENERATION: 7, CONFIG: 1, TOKENIZER: 1}, (1, 7)),
        ({GENERATION: [2, 7], CONFIG: 2, TOKENIZER: 7}, (7, 2)),
        ({CONFIG: 3, GENAI: 5, TOKENIZER: 5}, (5, 3)),
        ({GENERATION: None, CONFIG: None, TOKENIZER: 4}, (4,)),
    ],
    ids=str,
)
def test_the_token_at_which_most_loops_stop_comes_first(named: dict[str, Any], tokens: tuple[int, ...]) -> None:
    assert end_of_text(named).tokens == tokens


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({GENERATION: [2, 7], CONFIG: 2, TOKENIZER: 2}, None),
        ({GENERATION: 2, CONFIG: None, TOKENIZER: None}, None),
        ({}, None),
        (
            {GENERATION: [2, 7], CONFIG: 2, TOKENIZER: 7},
            "the tokens that end a text are not the same everywhere: generation_config.json names 2, 7; "
            "config.json names 2; the tokenizer names 7",
        ),
    ],
    ids=str,
)
def test_a_disagreement_is_told(named: dict[str, Any], told: str | None) -> None:
    assert end_of_text(named).disagreement == told


@pytest.fixture(params=["as saved", "older", "of its own vocabulary", "pieces"])
def tokenizer_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The byte-level tokenizer, its end-of-text token written as different versions and libraries write it."""
    byte_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if request.param == "as saved":
        return tmp_path
    del config["added_tokens_decoder"]
    if request.param == "older":
        config["eos_token"] = {"__type": "AddedToken", "content": END_OF_TEXT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if request.param != "older":
        tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
        tokenizer["added_tokens"] = []
        if request.param == "pieces":
            texts = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
            tokenizer["model"] = {"type": "Unigram", "vocab": [[text, 0.0] for text in texts]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


def test_the_tokenizer_alone_is_read_without_loading_it(tokenizer_directory: Path) -> None:
    assert read_end_of_text(tokenizer_directory).named == {TOKENIZER: (1,)}


def test_is_the_token_of_the_loaded_tokenizer(llama_checkpoint: Path) -> None:
    (token,) = read_end_of_text(llama_checkpoint).named[TOKENIZER]
    assert token == load_tokenizer(llama_checkpoint).eos_token_id
    assert special_token_text(llama_checkpoint, token) == END_OF_TEXT
    assert special_token_text(llama_checkpoint, 0) == PADDING
    assert special_token_text(llama_checkpoint, 7) is None


def test_a_tokenizer_that_names_none(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    # Transformers 5 writes the former alone.
    for path in (tmp_path / "tokenizer_config.json", tmp_path / "special_tokens_map.json"):
        if path.exists():
            content = json.loads(path.read_text())
            del content["eos_token"]
            path.write_text(json.dumps(content))
    assert not read_end_of_text(tmp_path).named
