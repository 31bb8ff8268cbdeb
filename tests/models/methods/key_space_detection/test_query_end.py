"""The tokens that every query ends with: the chat template's, or those that a recipe gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.encoding import encode_prompt
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.query_end import query_end

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


@pytest.fixture
def tokenizer(llama_checkpoint: Path) -> Tokenizer:
    tokenizer = load_tokenizer(llama_checkpoint)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_what_the_template_opens_an_answer_with(tokenizer: Tokenizer) -> None:
    chats = [render_chat(tokenizer, [{"role": "user", "content": text}], generation=True) for text in ("a", "b c")]
    queries = [encode_prompt(chat, tokenizer) for chat in chats]
    assert query_end("auto", tokenizer, queries) == tuple(tokenizer.encode("<answer>", add_special_tokens=False))
    # Where some queries are asked without the template, nothing is known.
    assert query_end("auto", tokenizer, [*queries, encode_prompt("a", tokenizer)]) == ()
    tokenizer.chat_template = None
    assert query_end("auto", tokenizer, queries) == ()


def test_a_text_of_the_recipe(tokenizer: Tokenizer) -> None:
    queries = [encode_prompt(text, tokenizer) for text in ("one?", "two?")]
    assert query_end("?", tokenizer, queries) == tuple(tokenizer.encode("?", add_special_tokens=False))
    with pytest.raises(BakeoutError, match="not every query of the data ends with 'o\\?'"):
        query_end("o?", tokenizer, queries)
