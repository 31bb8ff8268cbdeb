"""``tokenizer_config.json`` of an artifact: the tokenizer gives what the model takes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from bakeout.models.files.json_object import read_json

# What transformers' tokenizers give where neither the file nor their class says otherwise.
_GIVEN = ("input_ids", "token_type_ids", "attention_mask")


def limit_tokenizer(directory: Path, taken: Collection[str] = ("input_ids", "attention_mask")) -> None:
    """Let the tokenizer in ``directory``, if there is one, give no input but those ``taken``.

    ``model(**tokenizer(text))`` fails where the tokenizer gives ``token_type_ids``, which few decoders take.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return
    config = read_json(path)
    given = config.get("model_input_names")
    names = [name for name in (given if isinstance(given, list) else _GIVEN) if name in taken]
    if names and names != given:
        content = {**config, "model_input_names": names}
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
