"""The tokenizer of an artifact: it gives what the base model's gives, and no input that the model does not take."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.onnx_directory import OTHER_TEMPLATES
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE, recorded_options
from bakeout.models.data.tokenizers.tokenization import differing_sample, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.plan import Plan

_LOG = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
# What transformers' tokenizers give where neither the file nor their class says otherwise.
_GIVEN = ("input_ids", "token_type_ids", "attention_mask")


def limit_tokenizer(directory: Path, taken: Collection[str] = ("input_ids", "attention_mask")) -> None:
    """Let the tokenizer in ``directory``, if there is one, give no input but those ``taken``.

    ``model(**tokenizer(text))`` fails where the tokenizer gives ``token_type_ids``, which few decoders take.
    """
    path = directory / _CONFIG
    if not path.is_file():
        return
    config = read_json(path)
    given = config.get("model_input_names")
    names = [name for name in (given if isinstance(given, list) else _GIVEN) if name in taken]
    if names and names != given:
        _write(path, {**config, "model_input_names": names})


def name_known_class(directory: Path) -> None:
    """Let the tokenizer in ``directory`` be of a class that runtimes know, where transformers 5 wrote it.

    Its ``TokenizersBackend`` is version 4's ``PreTrainedTokenizerFast``, and 5 reads that name too. onnxruntime-genai
    0.13 and transformers 4 refuse the new one.
    """
    path = directory / _CONFIG
    config = read_json(path)
    if config.get("tokenizer_class") != "TokenizersBackend":
        return
    extra = config.pop("extra_special_tokens", None)
    listed = {"additional_special_tokens": extra} if isinstance(extra, list) else {}
    _write(path, {**config, **listed, "tokenizer_class": "PreTrainedTokenizerFast"})


def choose_template(directory: Path, plan: Plan) -> None:
    """Let the tokenizer in ``directory``, if there is one, render chats as ``plan`` records, by that template alone.

    Raises ``BakeoutError`` where it lacks that template.
    """
    record = plan.provenance.get(CHAT_TEMPLATE)
    config = directory / _CONFIG
    if not record or not config.is_file():
        return
    tokenizer = recorded_options(record).applied_to(load_tokenizer(directory))
    (directory / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8", newline="")
    shutil.rmtree(directory / OTHER_TEMPLATES, ignore_errors=True)
    if "chat_template" in (content := read_json(config)):
        _write(config, {**content, "chat_template": str(tokenizer.chat_template)})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def require_same_tokenizer(base: Path, directory: Path) -> None:
    """Raise ``BakeoutError`` unless the tokenizer in ``directory`` gives for some texts what that in ``base`` gives.

    Where that in ``base`` cannot be loaded, on this machine or at all, there is nothing to compare.
    """
    try:
        expected = load_tokenizer(base)
    except BakeoutError as error:
        _LOG.info("The artifact's tokenizer is not compared with the base model's: %s", error.cause)
        return
    try:
        tokenizer = load_tokenizer(directory)
    except BakeoutError as error:
        raise BakeoutError(
            f"The base model's tokenizer can be loaded, and the artifact's cannot: {error.cause}",
            "A file that it needs has a name that is not known: save it with save_pretrained, and bake that.",
        ) from None
    if (text := differing_sample(tokenizer, expected)) is not None:
        raise BakeoutError(
            f"The artifact's tokenizer gives other tokens than the base model's, for {text!r}.",
            "A file that it needs has a name that is not known: save it with save_pretrained, and bake that.",
        )
