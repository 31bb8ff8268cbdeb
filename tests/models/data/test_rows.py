"""Rows become the tokens that serving sees, and a bad row is named by file and line."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bakeout.models.data.prompt_rows import unlike_chats
from bakeout.models.data.row_source import DataError, source_digest
from bakeout.models.data.rows import Record, read_records

from tests.tiny_models import byte_tokenizer

BEGINNING = "<|endoftext|>"


def _write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@settings(max_examples=30)
@given(st.text(min_size=1), st.text())
def test_prompt_and_response_are_the_text_in_two_parts(tmp_path: Path, prompt: str, response: str) -> None:
    tokenizer = byte_tokenizer()
    path = _write(tmp_path / "data.jsonl", {"prompt": prompt, "response": response})
    (record,) = read_records(path, tokenizer)
    assert (record.prompt, record.response) == (prompt, response)
    assert record.prompt_ids == _ids(tokenizer, prompt)
    assert record.prompt_ids + record.response_ids == _ids(tokenizer, prompt + response)


def test_a_row_may_be_a_prompt_alone(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    (record,) = read_records(_write(tmp_path / "data.jsonl", {"prompt": "ab", "id": 7}), tokenizer)
    assert record == Record("ab", None, _ids(tokenizer, "ab"), [])


@pytest.mark.parametrize(
    ("row", "is_told"),
    [
        ({"prompt": "ab", "response": "c"}, True),
        ({"question": "ab", "answer": "c"}, True),
        ({"prompt": "[user] ab\n[assistant]", "response": "c"}, False),
        ({"messages": [{"role": "user", "content": "ab"}]}, False),
        ({"text": "ab"}, False),
    ],
)
def test_plain_prompts_of_a_chat_model_are_told(tmp_path: Path, row: dict[str, Any], is_told: bool) -> None:
    """Not those that were rendered elsewhere."""
    tokenizer = byte_tokenizer()
    path = _write(tmp_path / "data.jsonl", row)
    assert (unlike_chats(path, tokenizer) is not None) == is_told
    tokenizer.chat_template = None
    assert unlike_chats(path, tokenizer) is None


def test_plain_text_is_all_response(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    (record,) = read_records(_write(tmp_path / "data.jsonl", {"text": "ab"}), tokenizer)
    assert record == Record("", "ab", [], _ids(tokenizer, "ab"))


def _with_beginning() -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with a special token, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGINNING} $A", special_tokens=[(BEGINNING, 1)]
    )
    return tokenizer


def test_a_beginning_token_belongs_to_the_prompt(tmp_path: Path) -> None:
    tokenizer = _with_beginning()
    path = _write(tmp_path / "data.jsonl", {"prompt": "ab", "response": "c"}, {"text": "ab"})
    answered, text = read_records(path, tokenizer)
    assert (answered.prompt_ids, answered.response_ids) == ([1, *_ids(tokenizer, "ab")], _ids(tokenizer, "c"))
    assert (text.prompt_ids, text.response_ids) == ([1], _ids(tokenizer, "ab"))


def test_a_token_across_the_border_is_never_the_prompts(tmp_path: Path) -> None:
    """What the model is given is the prompt alone, so its tokens do not depend on the response."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["bc"])
    path = _write(tmp_path / "data.jsonl", {"prompt": "ab", "response": "cd"})
    (record,) = read_records(path, tokenizer)
    assert record.prompt_ids == _ids(tokenizer, "ab")
    assert record.response_ids == _ids(tokenizer, "cd")


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    # The template writes special tokens itself: they are not added a second time.
    tokenizer = _with_beginning()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    answered, open_ended = read_records(
        _write(tmp_path / "data.jsonl", {"messages": messages}, {"messages": messages[:1]}), tokenizer
    )
    assert (answered.prompt, answered.response) == ("[user] hi\n[assistant]", " yo\n")
    assert answered.prompt_ids == _ids(tokenizer, "[user] hi\n[assistant]")
    assert answered.response_ids == _ids(tokenizer, " yo\n")
    served: Any = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=True)
    assert open_ended == Record(answered.prompt, None, served, [])


@pytest.mark.parametrize(
    ("response", "ended"), [([5, 9], [5, 9]), ([5, 9, 4, 8], [5, 9]), ([9], [9]), ([5], [5, 8]), ([5, 8, 8], [5, 8])]
)
def test_an_answer_ends_once(response: list[int], ended: list[int]) -> None:
    """With the end that stands in it first, or where none does with the first that is named."""
    assert Record("p", "r", [3], response).ended_ids((8, 9)) == ended


def test_blank_lines_are_ignored_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"prompt": "a"}\r\n\n{"prompt": 1}\n')
    with pytest.raises(DataError, match=r"data\.jsonl, line 4: prompt is 1, not text"):
        read_records(path, byte_tokenizer())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not JSON"),
        (b'"text"', "a str, not a JSON object"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b"{}", "neither prompt, text nor messages"),
        (b'{"response": "a"}', "neither prompt, text nor messages"),
        (b'{"prompt": "a", "text": "b"}', "prompt and text"),
        (b'{"prompt": null}', "prompt is null"),
        (b'{"prompt": "a", "response": ["b"]}', "response is .*, not text"),
        (b'{"text": ""}', "no tokens"),
        (b'{"messages": []}', "not a list of objects"),
        (b'{"messages": "hi"}', "not a list of objects"),
        (b'{"messages": [{"role": "user"}]}', "not a list of objects"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"data\.jsonl, line 2: .*{says}") as caught:
        read_records(path, byte_tokenizer())
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{% if add_generation_prompt %}think{% endif %}{{ messages[0]['content'] }}", "leaves the answer out"),
        ("{{ messages[0]['content'] }}", "leaves the answer out"),
    ],
)
def test_conversations_that_the_template_cannot_render_are_refused(
    tmp_path: Path, template: str | None, says: str
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(DataError, match=rf"line 1: .*{says}"):
        read_records(_write(tmp_path / "data.jsonl", {"messages": messages}), tokenizer)


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for read in (lambda: read_records(path, byte_tokenizer()), lambda: source_digest(path)):
        with pytest.raises(DataError, match="cannot be read"):
            read()
    path.write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        read_records(path, byte_tokenizer())


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    path = _write(tmp_path / "data.jsonl", {"text": "a"})
    assert source_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_data_does_not_load_torch(llama_checkpoint: Path, tmp_path: Path) -> None:
    path = _write(tmp_path / "data.jsonl", {"prompt": "a", "response": "b"})
    program = (
        "import sys; from pathlib import Path; from bakeout.models.data.rows import read_records\n"
        "from bakeout.models.data.tokenizers.tokenization import load_tokenizer; assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        f"read_records(Path({str(path)!r}), load_tokenizer(Path({str(llama_checkpoint)!r})))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
