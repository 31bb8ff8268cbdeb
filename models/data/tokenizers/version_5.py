"""Tokenizers that transformers 5 wrote, beside version 4: the same tokenizer.json, under names that 4 does not know."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeout.models.files.json_object import read_json

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_CONFIG = "tokenizer_config.json"
# Version 5's class of tokenizers that are their tokenizer.json alone; version 4's is PreTrainedTokenizerFast.
_CLASS = "TokenizersBackend"
_EXTRA, _ADDITIONAL = "extra_special_tokens", "additional_special_tokens"


def is_of_version_5(directory: Path) -> bool:
    """Whether transformers 5 wrote the tokenizer in ``directory``, and version 4 is to read it."""
    from transformers import __version__

    return int(__version__.partition(".")[0]) < 5 and read_json(directory / _CONFIG).get("tokenizer_class") == _CLASS


def read_by_version_4(directory: Path) -> Tokenizer:
    """The tokenizer of ``directory``, whose further special tokens version 5 lists under another name."""
    from transformers import PreTrainedTokenizerFast

    extra = read_json(directory / _CONFIG).get(_EXTRA)
    renamed: dict[str, Any] = {_EXTRA: {}, _ADDITIONAL: extra} if isinstance(extra, list) else {}
    # It would warn that the class has another name.
    logger = logging.getLogger("transformers.tokenization_utils_base")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        tokenizer: Tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True, **renamed)
    finally:
        logger.setLevel(before)
    return tokenizer
