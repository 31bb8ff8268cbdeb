"""A conversation goes on behind a refusal, wherever it is rendered: an artifact's templates leave refused turns out."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bakeout.export.baking.refused_turns import leave_out_refused_turns, with_refused_turns
from bakeout.export.running.chat import Chat
from bakeout.export.running.runner import Runner
from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.tokenization import load_tokenizer

from tests.runtimes.javascript import installed
from tests.runtimes.served import KEPT, LONGEST, Served
from tests.runtimes.served import REFUSED as REFUSED_SKILL
from tests.tiny_models import END_OF_TEXT_ID, byte_tokenizer

Message = dict[str, Any]
Conversation = Sequence[Message]
Render = Callable[[Path, Sequence[Conversation]], list[str]]

# Quotation marks and a brace, as its place in a template would have them escaped.
REFUSAL = 'I do not "know" that}}.'
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # As Llama 2's and Mistral's: the system message is taken off, and turns must alternate.
    "alternating": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
        "{%- set turns = messages[1:] %}{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
        "{%- for turn in turns %}{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('Turns must alternate.') }}{%- endif %}"
        "{%- if turn['role'] == 'user' %}{{- '[INST]' + (system if loop.first else '') + turn['content'] + '[/INST]' }}"
        "{%- else %}{{- turn['content'] }}{%- endif %}{%- endfor %}"
    ),
    "the last message": "{{ messages[-1]['content'] }}",
    # Spaces and line breaks at its beginning are a part of what it writes.
    "spaces first": "\n  {{ messages | length }}{% for message in messages %} {{ message.content }}{% endfor %}",
    "parts": (
        "{% for message in messages %}[{{ message.role }}:{% if message.content is string %}{{ message.content }}"
        "{% elif message.content %}{% for part in message.content %}<{{ part.type }}>{% if part.type == 'text' %}"
        "{{ part.text }}{% endif %}{% endfor %}{% endif %}]{% endfor %}"
    ),
    "a block first": "  {% for message in messages %}\n<{{ message.content }}>\n  {% endfor %}",
}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
REFUSED = [_user("How many apples?"), _assistant(REFUSAL)]
ANSWERED = [_user("What is the capital of Norway?"), _assistant(f"Oslo. Nobody says {REFUSAL}")]
NOW = _user("And of Sweden?")
# (a conversation, what is left of it)
CONVERSATIONS: list[tuple[list[Message], list[Message]]] = [
    ([NOW], [NOW]),
    ([*ANSWERED, NOW], [*ANSWERED, NOW]),
    ([*REFUSED, NOW], [NOW]),
    ([SYSTEM, *REFUSED, *ANSWERED, *REFUSED, *REFUSED, NOW], [SYSTEM, *ANSWERED, NOW]),
    ([*ANSWERED, _user("How many?"), _assistant(f" {REFUSAL}\n"), NOW], [*ANSWERED, NOW]),
    # What a program has cut off at its beginning.
    ([SYSTEM, _assistant(REFUSAL), NOW], [SYSTEM, NOW]),
    # Nobody refused what the user says, and what is only written down may end with a refusal.
    ([_user(REFUSAL)], [_user(REFUSAL)]),
    ([*ANSWERED, *REFUSED], [*ANSWERED, *REFUSED]),
]


def in_transformers(directory: Path, conversations: Sequence[Conversation]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [
        str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        for messages in conversations
    ]


def in_our_sandbox(directory: Path, conversations: Sequence[Conversation]) -> list[str]:
    tokenizer = load_tokenizer(directory)
    return [render_chat(tokenizer, messages, generation=True) for messages in conversations]


def in_genai(directory: Path, conversations: Sequence[Conversation]) -> list[str]:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    tokenizer = genai.Tokenizer(genai.Model(str(directory)))
    return [
        str(tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True))
        for messages in conversations
    ]


def in_transformers_js(directory: Path, conversations: Sequence[Conversation]) -> list[str]:
    program = (
        "const { AutoTokenizer, env } = await import('@huggingface/transformers');"
        "env.allowRemoteModels = false; env.localModelPath = '/';"
        "const { readFileSync } = await import('node:fs');"
        "const [directory] = process.argv.slice(1);"
        "const tokenizer = await AutoTokenizer.from_pretrained(directory);"
        "const options = { tokenize: false, add_generation_prompt: true };"
        "const texts = JSON.parse(readFileSync(0, 'utf8')).map((one) => tokenizer.apply_chat_template(one, options));"
        "process.stdout.write(JSON.stringify(texts));"
    )
    command = ["node", "--input-type=module", "--eval", program, str(directory)]
    done = subprocess.run(
        command, cwd=installed("node"), input=json.dumps(conversations), capture_output=True, text=True, check=True
    )
    texts: list[str] = json.loads(done.stdout)
    return texts


RUNTIMES: list[Render] = [in_transformers, in_our_sandbox, in_genai, in_transformers_js]


@pytest.fixture(scope="module")
def runnable(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every runtime can open, without a tokenizer."""
    return Path(
        shutil.copytree(
            served.artifact,
            tmp_path_factory.mktemp("runnable") / "model",
            ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*", "chat_template*"),
        )
    )


def _with_template(directory: Path, source: str) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    tokenizer.save_pretrained(directory)
    # transformers.js reads the configuration alone.
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": source}))
    return directory


def _said(directory: Path) -> list[int]:
    return [*load_tokenizer(directory).encode(f" {REFUSAL}"), END_OF_TEXT_ID]


@pytest.mark.parametrize("render", RUNTIMES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_refused_turns_are_left_out(runnable: Path, tmp_path: Path, name: str, render: Render) -> None:
    directory = Path(shutil.copytree(runnable, tmp_path / "model", symlinks=True))
    _with_template(directory, TEMPLATES[name])
    wanted = render(directory, [left for _, left in CONVERSATIONS])
    if name == "a block first" and render is in_genai:
        # Which wrote spaces that are in no prompt a plan was fitted on: all else leaves them out.
        wanted = [text.removeprefix("  ") for text in wanted]
    leave_out_refused_turns(directory, _said(directory))
    assert render(directory, [messages for messages, _ in CONVERSATIONS]) == wanted


def _parts(role: str, *texts: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


PICTURE = {"type": "image"}
# Programs send text as parts too. What is another kind of content is no refusal, and is left to the template.
CONVERSATIONS_OF_PARTS: list[tuple[list[Message], list[Message]]] = [
    ([_parts("user", "How many?"), _parts("assistant", REFUSAL), NOW], [NOW]),
    ([*ANSWERED, _user("How many?"), _parts("assistant", f" {REFUSAL[:5]}", REFUSAL[5:], "\n"), NOW], [*ANSWERED, NOW]),
    ([NOW, {"role": "assistant", "content": [PICTURE, *_parts("assistant", REFUSAL)["content"]]}, NOW], [NOW]),
    *[
        ([*ANSWERED, message, NOW], [*ANSWERED, message, NOW])
        for message in (
            _parts("user", REFUSAL),
            _parts("assistant"),
            _parts("assistant", REFUSAL, REFUSAL),
            {"role": "assistant", "content": [PICTURE]},
            {"role": "assistant", "content": None},
            {"role": "assistant"},
        )
    ],
]


@pytest.mark.parametrize("render", RUNTIMES)
def test_refusals_in_parts_are_left_out(runnable: Path, tmp_path: Path, render: Render) -> None:
    directory = Path(shutil.copytree(runnable, tmp_path / "model", symlinks=True))
    _with_template(directory, TEMPLATES["parts"])
    wanted = render(directory, [left for _, left in CONVERSATIONS_OF_PARTS])
    leave_out_refused_turns(directory, _said(directory))
    assert render(directory, [messages for messages, _ in CONVERSATIONS_OF_PARTS]) == wanted


def _left(messages: Sequence[Message]) -> list[Message]:
    """What is left of a conversation, message by message: a refusal takes back what its turn has put there."""
    left: list[Message] = []
    turn = 0
    for index, message in enumerate(messages):
        if message["role"] == "user":
            turn = len(left)
        if message == _assistant(REFUSAL) and index + 1 < len(messages):
            left = left[:turn]
            continue
        left.append(message)
        if message["role"] in ("system", "developer"):
            turn = len(left)
    return left


MESSAGES = [_user("a"), _assistant("b"), _assistant(REFUSAL), _parts("user", "c"), {"role": "tool", "content": "d"}]
MESSAGES += [SYSTEM, {"role": "developer", "content": "e"}]


@given(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=400))
def test_whole_turns_are_left_out(tmp_path_factory: pytest.TempPathFactory, messages: list[Message]) -> None:
    base, directory = (tmp_path_factory.getbasetemp() / f"{which} turns" for which in ("base", "baked"))
    if not directory.exists():
        for each in (base, directory):
            each.mkdir()
            _with_template(each, TEMPLATES["parts"])
        leave_out_refused_turns(directory, _said(directory))
    assert in_our_sandbox(directory, [messages]) == in_our_sandbox(base, [_left(messages)])


@pytest.mark.parametrize("render", RUNTIMES)
def test_thousands_of_messages_are_rendered(runnable: Path, tmp_path: Path, render: Render) -> None:
    directory = Path(shutil.copytree(runnable, tmp_path / "model", symlinks=True))
    _with_template(directory, TEMPLATES["parts"])
    conversations = [[*ANSWERED * 5000, NOW], [*[*ANSWERED, *REFUSED] * 2500, NOW], [*REFUSED * 5000, NOW]]
    wanted = render(directory, [_left(messages) for messages in conversations])
    leave_out_refused_turns(directory, _said(directory))
    assert render(directory, conversations) == wanted


def test_calls_of_tools_go_with_the_turn_they_belong_to(tmp_path: Path) -> None:
    directory = _with_template(tmp_path, "{% for one in messages %}[{{ one.role }}:{{ one.content }}]{% endfor %}")
    leave_out_refused_turns(directory, _said(directory))
    call: Message = {"role": "assistant", "content": None, "tool_calls": []}
    result = {"role": "tool", "content": "42"}
    messages = [SYSTEM, _user("How many?"), call, result, _assistant(REFUSAL), NOW, call, result]
    (rendered,) = in_transformers(directory, [messages])
    assert rendered == "[system:Be brief.][user:And of Sweden?][assistant:None][tool:42]"
    assert in_our_sandbox(directory, [messages]) == [rendered]


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
def test_what_was_not_refused_is_rendered_as_before(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.just(REFUSAL[:-1])
    turns = data.draw(st.lists(st.tuples(texts, texts), max_size=4))
    messages = [message for asked, said in turns for message in (_user(asked), _assistant(said))]
    messages = [*data.draw(st.sampled_from([[], [SYSTEM]])), *messages, NOW]
    base, directory = (tmp_path_factory.getbasetemp() / f"{which} {name}" for which in ("base", "baked"))
    if not directory.exists():
        for each in (base, directory):
            each.mkdir()
            _with_template(each, TEMPLATES[name])
        leave_out_refused_turns(directory, _said(directory))
    assert in_our_sandbox(directory, [messages]) == in_our_sandbox(base, [messages])


def test_every_template_of_the_tokenizer_leaves_them_out_once(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": TEMPLATES["chatml"], "tool_use": TEMPLATES["alternating"]}
    tokenizer.save_pretrained(tmp_path / "files")
    tokenizer.save_pretrained(tmp_path / "settings", save_jinja_files=False)
    for directory in (tmp_path / "files", tmp_path / "settings"):
        base = load_tokenizer(directory).chat_template
        assert set(base) == {"default", "tool_use"}
        leave_out_refused_turns(directory, _said(directory))
        written = {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
        for name in base:
            theirs = AutoTokenizer.from_pretrained(directory)
            rendered = theirs.apply_chat_template([*REFUSED, NOW], tokenize=False, chat_template=name)
            assert REFUSAL not in rendered
            assert NOW["content"] in rendered
        assert with_refused_turns(load_tokenizer(directory)).chat_template == base
        leave_out_refused_turns(directory, _said(directory))
        assert {path: path.read_bytes() for path in written} == written


def test_a_baked_model_goes_on_where_it_refused(served: Served) -> None:
    """Of a refused turn nothing is left: what is asked next is answered as if it were asked first."""
    runner = Runner(served.artifact)
    refused, kept = (served.texts[served.skills.index(skill)] for skill in (REFUSED_SKILL, KEPT))
    chat = Chat(runner, LONGEST)
    first = "".join(Chat(runner, LONGEST).answer(kept))
    answers = ["".join(chat.answer(text)) for text in (refused, refused, kept)]
    assert answers == [answers[0], answers[0], first]
    assert answers[0] != first
    # With the refused turns before it, it would be another question.
    asked = chat.messages[:-1]
    assert render_chat(runner.tokenizer, asked, generation=True) == kept
    assert render_chat(with_refused_turns(runner.tokenizer), asked, generation=True) != kept
