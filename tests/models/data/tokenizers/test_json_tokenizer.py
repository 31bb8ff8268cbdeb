"""The tokenizer that needs no transformers, held against transformers' own: ids, texts, rendered chats."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import datetime, time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BloomTokenizerFast,
    CohereTokenizerFast,
    GemmaTokenizerFast,
    GPT2TokenizerFast,
    GPTNeoXTokenizerFast,
    LlamaTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2TokenizerFast,
)

from bakeout.models.data.tokenizers.chat_template import PINNED_DATE, ChatTemplateError
from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer
from bakeout.models.errors import BakeoutError

CORPUS = [
    "The quick brown fox jumps over the lazy dog; it doesn't stop, it's off!",
    "Wie heißt du? Ich heiße Jürgen, und das kostet 3,50 €.",
    "机器学习 is machine learning. 日本語のテキスト。",
    "def add(a, b):\n    return a + b\n",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two spaces, and\ttabs\n\nand lines  ",
    "I 'm here , are n't you ? Yes ! we 've ' quoted ' it .",
    "<s>special</s> <|endoftext|> <pad>x<unk> [USER] [TOOL]next",
    "emoji 👩‍👩‍👧 and e\u0301 combined, \u00a0no-break, \ufffd, \x00",
    "".join(map(chr, random.Random(0).choices(range(0x20, 0x3000), k=80))),
]
CHATS = [
    [{"role": "user", "content": "What's 2 + 2?"}],
    [
        {"role": "system", "content": "Be brief, <b>please</b>."},
        {"role": "user", "content": " Wie heißt du? 日本 "},
        {"role": "assistant", "content": "Jürgen\n"},
        {"role": "user", "content": 'And "you"?'},
    ],
]
CHATML = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{% for message in rest %}
    {% if loop.index > 8 %}{% break %}{% endif %}
{{ bos_token or '' }}<|im_start|>{{ message.role }}
{{ message.content | trim }}{{ eos_token }}
    {# a comment #}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GENERATION = """\
{% set ns = namespace(turns=0) %}{% set word = 'outer' %}
{% for message in messages %}
{% if message.role == 'assistant' %}{% generation %}{% set word = 'inner' %}{{ message.content }}{{ eos_token }}
{% endgeneration %}{% else %}{% set ns.turns = ns.turns + 1 %}{{ message | tojson }} {{ message | tojson(indent=1) }}
{% endif %}{% endfor %}
{{ word }} {{ ns.turns }} {{ strftime_now('%Y') }} {{ tools is none }} {{ documents is none }}
{{ additional_special_tokens }} {{ unk_token }} {{ image_token }} {{ undefined_name }}"""

Build = Callable[[], PreTrainedTokenizerBase]


def _byte_level(*, prefix_space: bool = False, framed: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tokenizer


def _split_byte_level() -> Tokenizer:
    tokenizer = _byte_level(framed=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _sentence_piece(special: list[str]) -> Tokenizer:
    """BPE with byte fallback, as Llama's and Gemma's."""
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,.?", "th", "the"]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, "▁the", "▁t"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "t"), ("▁", "the")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _bounded() -> Tokenizer:
    """A file that asks for truncation and padding, which nobody asks of a prompt."""
    tokenizer = _byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    return tokenizer


def _fast(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


TOKENIZERS: dict[str, Build] = {
    "byte-level": lambda: _fast(_byte_level(), eos_token="<|endoftext|>"),
    "byte-level with a frame": lambda: _fast(_split_byte_level(), bos_token="<s>", eos_token="</s>"),
    "byte-level whose file asks for a prefix space": lambda: _fast(_byte_level(prefix_space=True), eos_token="</s>"),
    "special tokens are text": lambda: _fast(_byte_level(framed=True), eos_token="</s>", split_special_tokens=True),
    "truncated and padded": lambda: _fast(_bounded(), eos_token="</s>", pad_token="<pad>"),
    "cleaned up": lambda: _fast(_byte_level(), eos_token="</s>", clean_up_tokenization_spaces=True),
    "unigram": lambda: _fast(_unigram(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
    "word pieces": lambda: _fast(
        _word_piece(), eos_token="[SEP]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    ),
    "named but not in the file": lambda: _fast(
        _byte_level(), bos_token="[BEGIN]", eos_token="[END]", additional_special_tokens=["[USER]", "[TOOL]"]
    ),
    "extra special tokens": lambda: _fast(
        _byte_level(),
        eos_token="</s>",
        extra_special_tokens={"image_token": "[TOOL]"},
        additional_special_tokens=["[USER]"],
    ),
    "GPT-2": lambda: GPT2TokenizerFast(tokenizer_object=_byte_level()),
    "GPT-2 with a prefix space": lambda: GPT2TokenizerFast(tokenizer_object=_byte_level(), add_prefix_space=True),
    "GPT-NeoX": lambda: GPTNeoXTokenizerFast(tokenizer_object=_byte_level()),
    "GPT-NeoX, framed": lambda: GPTNeoXTokenizerFast(
        tokenizer_object=_byte_level(), bos_token="<s>", add_bos_token=True, add_eos_token=True
    ),
    "Qwen": lambda: Qwen2TokenizerFast(tokenizer_object=_byte_level(), additional_special_tokens=["<|im_start|>"]),
    "Bloom": lambda: BloomTokenizerFast(tokenizer_object=_byte_level()),
    "Cohere": lambda: CohereTokenizerFast(tokenizer_object=_byte_level()),
    "Llama": lambda: LlamaTokenizerFast(tokenizer_object=_sentence_piece(["<unk>", "<s>", "</s>"])),
    "Llama without a beginning": lambda: LlamaTokenizerFast(
        tokenizer_object=_sentence_piece(["<unk>", "<s>", "</s>"]), add_bos_token=False, add_eos_token=True
    ),
    "Gemma": lambda: GemmaTokenizerFast(tokenizer_object=_sentence_piece(["<pad>", "<eos>", "<bos>", "<unk>"])),
}


def _saved(tokenizer: PreTrainedTokenizerBase, directory: Path) -> Path:
    tokenizer.save_pretrained(directory)
    return directory


def _added(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.add_tokens([AddedToken("next", lstrip=True), AddedToken("quick brown", single_word=True)])
    tokenizer.add_tokens([AddedToken("machine", rstrip=True, special=True)], special_tokens=True)
    return tokenizer


def _assert_same(directory: Path) -> None:
    ours, theirs = JsonTokenizer(directory), AutoTokenizer.from_pretrained(directory)
    names = ("bos_token", "bos_token_id", "eos_token_id", "chat_template")
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, text
            for skip in (True, False):
                for clean in (None, True, False):
                    options: dict[str, Any] = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                    assert ours.decode(ids, **options) == theirs.decode(ids, **options)


def _assert_same_chats(directory: Path) -> None:
    ours, theirs = JsonTokenizer(directory), AutoTokenizer.from_pretrained(directory)
    for chat in CHATS:
        for prompt in (True, False):
            options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompt}
            rendered = theirs.apply_chat_template(chat, **options, strftime_now=_pinned_clock)
            assert ours.apply_chat_template(chat, **options) == rendered
        assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat, strftime_now=_pinned_clock)


def _pinned_clock(form: str) -> str:
    return datetime.combine(PINNED_DATE, time()).strftime(form)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_texts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    _assert_same(_saved(TOKENIZERS[name](), tmp_path))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_added_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    _assert_same(_saved(_added(TOKENIZERS[name]()), tmp_path))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_files_of_older_versions_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    """Before 4.34, the special tokens were in special_tokens_map.json and other new tokens in added_tokens.json."""
    _saved(_added(TOKENIZERS[name]()), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"]
    path.write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"fox jumps": 4000}))
    _assert_same(tmp_path)


@pytest.mark.parametrize("kept", [["tokenizer_class"], ["tokenizer_class", "added_tokens_decoder"]])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_a_class_sets_by_itself_is_that_of_transformers(name: str, kept: list[str], tmp_path: Path) -> None:
    _saved(TOKENIZERS[name](), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in kept}))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    _assert_same(tmp_path)


@pytest.mark.parametrize("where", ["file", "configuration", "list"])
@pytest.mark.parametrize("template", [CHATML, GENERATION])
@pytest.mark.parametrize("name", ["byte-level with a frame", "extra special tokens", "unigram", "Qwen", "Llama"])
def test_chats_are_rendered_as_transformers_renders_them(name: str, template: str, where: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    if where == "file":
        tokenizer.chat_template = template
    _saved(tokenizer, tmp_path)
    if where != "file":
        path = tmp_path / "tokenizer_config.json"
        several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        content = {**json.loads(path.read_text()), "chat_template": template if where == "configuration" else several}
        path.write_text(json.dumps(content))
    ours, theirs = JsonTokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert bool(ours.chat_template) and bool(theirs.chat_template)
    _assert_same_chats(tmp_path)


def test_a_template_may_refuse_a_chat_and_may_not_leave_its_sandbox(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    for template in (
        "{{ raise_exception('no system prompts') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__ }}{{ x.y }}",
    ):
        tokenizer.chat_template = template
        _saved(tokenizer, tmp_path)
        with pytest.raises(TemplateError):
            AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(CHATS[0], tokenize=False)
        with pytest.raises(ChatTemplateError):
            JsonTokenizer(tmp_path).apply_chat_template(CHATS[0], tokenize=False)


def _rewrite(directory: Path, **settings: Any) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
        (lambda d: (d / "tokenizer_config.json").write_text("{"), "tokenizer_config.json cannot be read"),
        (lambda d: (d / "tokenizer_config.json").write_text("[]"), "is not a JSON object"),
        (lambda d: (d / "tokenizer_config.json").unlink(), "class '' cannot be read by Bakeout alone"),
        (lambda d: _rewrite(d, tokenizer_class="T5Tokenizer"), "class 'T5Tokenizer' cannot be read by Bakeout alone"),
        (lambda d: _rewrite(d, from_slow=True), "differs from its"),
        (
            lambda d: _rewrite(d, tokenizer_class="LlamaTokenizer", add_prefix_space=False),
            "differs from its tokenizer.json",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_with_a_remedy(
    break_it: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    break_it(_saved(TOKENIZERS["byte-level"](), tmp_path))
    with pytest.raises(BakeoutError, match=r"pip install 'bakeout|Copy the tokenizer again") as refused:
        JsonTokenizer(tmp_path)
    assert says in refused.value.cause
    assert "\n" not in str(refused.value)
