"""transformers' warning of Mistral's tokenizers, which 4.57.3 and later give for most large ones in a local folder."""

from __future__ import annotations

import logging
import threading
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
    thread = threading.get_ident()

    # One of its own for every context: other threads load other tokenizers meanwhile.
    def is_no_alarm(record: logging.LogRecord) -> bool:
        return record.thread != thread or "fix_mistral_regex" not in str(record.msg)

    for logger in loggers:
        logger.addFilter(is_no_alarm)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_no_alarm)
