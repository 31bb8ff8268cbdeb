"""The tokens that open every query: the chat template's, or those that a recipe gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.encoding import encode_prompt
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.query_start import query_start
from bakeout.models.plan import first_of_mean

# A system prompt of its own stands in front of a first turn, and answers are closed.
TEMPLATE = (
    "{% if messages[0].role != 'system' %}[sys]Be kind.[end]\n{% endif %}"
    "{% for message in messages %}<{{ message.role }}>\n{{ message.content }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is it?"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
]


@pytest.fixture
def tokenizer(llama_checkpoint: Path) -> Tokenizer:
    tokenizer = load_tokenizer(llama_checkpoint)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _queries(tokenizer: Tokenizer) -> list[list[int]]:
    chats = [render_chat(tokenizer, messages, generation=True) for messages in CONVERSATIONS]
    return [encode_prompt(chat, tokenizer) for chat in chats]


def test_what_the_template_writes_in_front_of_a_user_s_text(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    queries = _queries(tokenizer)
    opening = query_start("auto", tokenizer, queries)
    assert opening
    # Whatever a user's text begins with.
    for text in ("Hello", "\nHello", "\n\nHello", "  Hello", "1", "\tHello"):
        chat = encode_prompt(render_chat(tokenizer, [{"role": "user", "content": text}], generation=True), tokenizer)
        start = first_of_mean(chat, opening)
        assert tokenizer.decode(chat[start:]).startswith("<user>"), text
        assert text.strip() in tokenizer.decode(chat[start:])
    assert not caplog.records
    # Where some queries are asked without the template, nothing is known.
    assert query_start("auto", tokenizer, [*queries, encode_prompt("a", tokenizer)]) == ()
    assert "Not every query is a user's turn" in caplog.text
    tokenizer.chat_template = None
    assert query_start("auto", tokenizer, queries) == ()


def test_what_opens_an_answer_too_opens_no_query(tokenizer: Tokenizer) -> None:
    """As of ChatML, where but one token is the same in front of all turns: the last one would be the answer's."""
    tokenizer.chat_template = (
        "{% for message in messages %}[turn]{{ message.content }}[end]{% endfor %}"
        "{% if add_generation_prompt %}[turn]{% endif %}"
    )
    assert query_start("auto", tokenizer, _queries(tokenizer)) == ()


def test_what_closes_an_answer_is_no_part_of_it(tokenizer: Tokenizer) -> None:
    """Nor where a template closes an answer once another turn follows alone."""
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'user' %}{% if not loop.first %}[end]{% endif %}"
        "[ask]{{ message.content }}{% else %}[say]{{ message.content }}{% endif %}{% endfor %}"
    )
    assert query_start("auto", tokenizer, _queries(tokenizer)) == tuple(
        tokenizer.encode("[ask]", add_special_tokens=False)
    )


def test_a_text_of_the_recipe(tokenizer: Tokenizer) -> None:
    queries = [encode_prompt(text, tokenizer) for text in ("Q: one?", "Q: two?")]
    assert query_start("Q:", tokenizer, queries) == tuple(tokenizer.encode("Q:", add_special_tokens=False))
    with pytest.raises(BakeoutError, match="not every query of the data holds 'one'"):
        query_start("one", tokenizer, queries)
