"""Tokenizers without transformers: ``tokenizer.json`` and the files beside it, used as transformers uses them.

The rules are those of transformers 4.57 (``PreTrainedTokenizerFast`` and the classes of causal language models built
on it): ids, texts and rendered chats are the same, and a test holds the two against each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors

from bakeout.models.data.tokenizers.chat_template import render_chat
from bakeout.models.data.tokenizers.token_lengths import require_short_tokens
from bakeout.models.data.tokenizers.tokenization import Message
from bakeout.models.data.tokenizers.tokenizer_files import TokenizerFiles, damaged_files, read_tokenizer_files
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import installing

# What English text is cleaned of, in this order.
_SPACES = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class JsonTokenizer:
    """The tokenizer whose ``tokenizer.json`` and ``tokenizer_config.json`` lie in ``directory``.

    >>> tokenizer = JsonTokenizer(Path("bakeout-demo/forget-math"))    # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Hello"))                    # doctest: +SKIP
    'Hello'

    ``chat_template``: the template of chats, or several by name; empty or None where there is none. Raises
    ``BakeoutError`` where the files are missing or damaged, and where only transformers can read them.
    """

    def __init__(self, directory: Path) -> None:
        with damaged_files(directory):
            require_short_tokens(directory)
            self._read(directory)

    def _read(self, directory: Path) -> None:
        self._tokenizer = _read_tokenizer(directory)
        files = read_tokenizer_files(directory)
        self._special = {name: str(token) for name, token in files.special.items()}
        self._more_special = [str(token) for token in files.more_special]
        self.chat_template: Any = files.chat_template
        self._cleans_up = bool(files.settings.get("clean_up_tokenization_spaces"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = bool(files.settings.get("split_special_tokens"))
        _add_tokens(self._tokenizer, files)
        _set_prefix_space(self._tokenizer, files.settings.get("add_prefix_space", False))
        if files.frames:
            self._tokenizer.post_processor = self._frame(files.settings)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, or None."""
        return self._special.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        """Its id."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, or None."""
        return self._id("eos_token")

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens by name, for templates of chats."""
        return self._special | ({"additional_special_tokens": self._more_special} if self._more_special else {})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, with the special tokens around it that the model was trained with."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of token ids. Spaces before punctuation are removed where asked for, by default as configured."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        if self._cleans_up if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces:
            for written, clean in _SPACES:
                text = text.replace(written, clean)
        return text

    def apply_chat_template(
        self, conversation: list[Message], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str | list[int]:
        """A chat as text (``tokenize=False``) or token ids. Raises ``ChatTemplateError`` where the template raises."""
        text = render_chat(self, conversation, generation=add_generation_prompt)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _id(self, name: str) -> int | None:
        return self._tokenizer.token_to_id(self._special[name]) if name in self._special else None

    def _frame(self, settings: Mapping[str, Any]) -> processors.TemplateProcessing:
        """The special tokens around a text as some classes set them, in place of tokenizer.json's."""
        begin = [self._special["bos_token"]] if settings.get("add_bos_token") else []
        end = [self._special["eos_token"]] if settings.get("add_eos_token") else []
        return processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *(f"{token}:1" for token in begin), "$B:1", *(f"{token}:1" for token in end)],
            special_tokens=[(token, self._tokenizer.token_to_id(token)) for token in {*begin, *end}],
        )


def _read_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BakeoutError(
            f"{directory} holds no tokenizer.json.",
            f"Put it beside the other files, or install what reads other vocabularies: {installing('transformers')}.",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise BakeoutError(f"{path} cannot be read ({error}).", "Copy the tokenizer again.") from None


def _add_tokens(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    """Add what the files name and tokenizer.json lacks, in transformers' order, so that ids are the same."""
    special = [*files.special.values(), *files.more_special]
    contents_of_special = {str(token) for token in special}
    present = list(tokenizer.get_added_tokens_decoder().values())
    known = {repr(token) for token in present}
    tokens = [token for _, token in sorted(files.added.items()) if repr(token) not in known]
    contents = {token.content for token in (*present, *tokens)}
    tokens += [
        token if isinstance(token, AddedToken) else AddedToken(token, special=True)
        for token in special
        if isinstance(token, AddedToken) or token not in contents
    ]
    for token in tokens:
        token.special = token.special or token.content in contents_of_special
    tokenizer.add_tokens(tokens)


def _set_prefix_space(tokenizer: Tokenizer, prefix_space: bool | None) -> None:
    """Whether a text is encoded as if a space stood before it: the configuration decides, not tokenizer.json."""
    if tokenizer.pre_tokenizer is None or prefix_space is None:
        return
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    if state.get("add_prefix_space", prefix_space) != prefix_space:
        kind = getattr(pre_tokenizers, state.pop("type"))
        tokenizer.pre_tokenizer = kind(**{**state, "add_prefix_space": prefix_space})
