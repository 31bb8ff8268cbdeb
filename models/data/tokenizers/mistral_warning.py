"""transformers' warning of Mistral's tokenizers, which since 4.57.3 it gives for all large ones in a local folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bakeout.models.files.json_object import read_json

# The types whose early tokenizer files did split texts otherwise than their model was trained with.
_CONCERNED = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
# What warns, in versions 4 and 5.
_LOGGERS = ("transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers")


@contextmanager
def without_false_alarms(directory: Path) -> Iterator[None]:
    """A context in which a tokenizer of ``directory`` is loaded: the warning shows for the types that it is about."""
    if str(read_json(directory / "config.json").get("model_type")) in _CONCERNED:
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_no_alarm)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_alarm)


def _is_no_alarm(record: logging.LogRecord) -> bool:
    return "fix_mistral_regex" not in record.getMessage()
