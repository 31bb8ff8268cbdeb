"""A warning of transformers shows for the tokenizers that it is about, and for no others."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bakeout.models.data.tokenizers.mistral_warning import without_false_alarms
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


def test_one_that_is_loaded_hides_nothing_of_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Contexts of the same thread end one by one; other threads' warnings show."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addHandler(caplog.handler)

    def warned() -> bool:
        caplog.clear()
        logger.warning("set the `fix_mistral_regex=True` flag")
        return bool(caplog.text)

    try:
        one, other = without_false_alarms(tmp_path), without_false_alarms(tmp_path)
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        with ThreadPoolExecutor(1) as threads:
            assert (warned(), threads.submit(warned).result()) == (False, True)
        other.__exit__(None, None, None)
        assert warned()
    finally:
        logger.removeHandler(caplog.handler)
