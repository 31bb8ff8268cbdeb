import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeout.export.running.chat import Chat, pieces, prompt_tokens
from bakeout.export.running.runner import Runner
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError


@pytest.fixture(scope="module")
def runner(llama_onnx: Path) -> Runner:
    return Runner(llama_onnx)


@pytest.fixture(scope="module")
def tokenizer(llama_onnx: Path) -> Tokenizer:
    return load_tokenizer(llama_onnx)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_are_whole_characters_and_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    shown = list(pieces(tokenizer, iter(tokens)))
    assert "".join(shown) == tokenizer.decode(tokens, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(shown)


def test_pieces_come_as_soon_as_a_character_is_whole(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("aé€😀b")
    assert list(pieces(tokenizer, iter(tokens))) == ["a", "é", "€", "😀", "b"]


def test_bytes_that_never_become_a_character_do_not_hold_up_what_follows(tokenizer: Tokenizer) -> None:
    lone = tokenizer.encode("😀")[:1]
    shown = "".join(pieces(tokenizer, iter([*lone, *tokenizer.encode("and on")])))
    assert shown.endswith("and on")


def test_no_letter_is_lost_where_the_tokenizer_cleans_up_spaces(llama_onnx: Path, tmp_path: Path) -> None:
    """Of ` 's`, which it makes `'s`, the space is shown by then."""
    directory = shutil.copytree(llama_onnx, tmp_path / "model", ignore=shutil.ignore_patterns("*.onnx*"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "clean_up_tokenization_spaces": True}))
    cleaning = load_tokenizer(directory)
    text = "name = 'sam' , and he 's here"
    assert cleaning.decode(cleaning.encode(text)) != text
    assert "".join(pieces(cleaning, iter(cleaning.encode(text)))) == text


def test_a_conversation_goes_through_the_chat_template(runner: Runner) -> None:
    chat = Chat(runner, max_new_tokens=3)
    assert chat.remembers
    first = "".join(chat.answer("one"))
    assert chat.messages == [{"role": "user", "content": "one"}, {"role": "assistant", "content": first.strip()}]
    asked = [*chat.messages, {"role": "user", "content": "two"}]
    text = str(runner.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    expected = list(runner.stream(runner.tokenizer.encode(text, add_special_tokens=False), 3))
    assert "".join(chat.answer("two")) == runner.tokenizer.decode(expected, skip_special_tokens=True)
    assert len(chat.messages) == 4
    chat.forget()
    assert "".join(chat.answer("one")) == first


def test_single_turns_stand_alone(runner: Runner) -> None:
    chat = Chat(runner, max_new_tokens=3, single_turn=True)
    first = "".join(chat.answer("one"))
    "".join(chat.answer("two"))
    assert "".join(chat.answer("one")) == first


def test_without_a_chat_template_the_prompt_is_what_the_model_sees(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.tokenizer, "chat_template", None)
    assert not Chat(runner).remembers
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": "now"}]
    assert prompt_tokens(runner.tokenizer, messages) == runner.tokenizer.encode("now")


def test_a_template_that_refuses_says_why(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system message') }}")
    with pytest.raises(BakeoutError, match="no system message"):
        prompt_tokens(tokenizer, [{"role": "user", "content": "hello"}])
