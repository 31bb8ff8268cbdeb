"""A warning of transformers shows for the tokenizers that it is about, and for no others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bakeout.models.data.tokenizers.tokenization import load_tokenizer


@pytest.mark.parametrize(("model_type", "warned"), [("llama", False), ("smollm3", False), ("mistral", True)])
def test_the_warning_is_of_mistrals_tokenizers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model_type: str, warned: bool
) -> None:
    # One of over 100,000 tokens.
    vocabulary = {f"{number:x}": number for number in range(100_001)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1").save_pretrained(tmp_path)
    config = {"model_type": model_type, "transformers_version": "4.57.3"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        load_tokenizer(tmp_path)
        assert ("fix_mistral_regex" in caplog.text) == warned
    finally:
        logger.removeHandler(caplog.handler)
