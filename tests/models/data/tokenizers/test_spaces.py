"""A tokenizer that loses the spaces which its own file keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bakeout.models.data.tokenizers.spaces import require_spaces_kept
from bakeout.models.errors import BakeoutError


def test_a_tokenizer_that_is_rebuilt_without_spaces_is_refused(tmp_path: Path) -> None:
    _byte_level().save(str(tmp_path / "tokenizer.json"))
    rebuilt = _byte_level()
    rebuilt.pre_tokenizer, rebuilt.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    with pytest.raises(BakeoutError, match="loses all spaces"):
        require_spaces_kept(PreTrainedTokenizerFast(tokenizer_object=rebuilt), tmp_path)


def test_a_tokenizer_that_keeps_spaces_passes(tmp_path: Path) -> None:
    _byte_level().save(str(tmp_path / "tokenizer.json"))
    require_spaces_kept(PreTrainedTokenizerFast(tokenizer_object=_byte_level()), tmp_path)


def test_a_tokenizer_whose_own_file_has_no_spaces_passes(tmp_path: Path) -> None:
    without = _byte_level()
    without.pre_tokenizer, without.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    without.save(str(tmp_path / "tokenizer.json"))
    require_spaces_kept(PreTrainedTokenizerFast(tokenizer_object=without), tmp_path)


def _byte_level() -> Tokenizer:
    letters = {letter: number for number, letter in enumerate(["Ġ", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
