"""What lies beside a graph or a checkpoint's weights: companion files, and the tokens that end and pad its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError

# What travels with a model's weights: configuration, tokenizer, licence.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)


def companion_files(directory: Path) -> list[Path]:
    """A model's configuration, tokenizer and licence files in ``directory``, in order of name."""
    return sorted({path for pattern in _COMPANIONS for path in directory.glob(pattern) if path.is_file()})


def special_tokens(directory: Path) -> tuple[frozenset[int], int]:
    """The tokens that end a text, and the one that pads (one of those that end where no other is named).

    From ``generation_config.json``, ``config.json`` or, for onnxruntime-genai's directories, ``genai_config.json``, in
    this order. Raises ``BakeoutError`` when none of them names an end-of-text token.
    """
    genai = read_json(directory / "genai_config.json").get("model", {})
    sources = (read_json(directory / "generation_config.json"), read_json(directory / "config.json"), genai)
    for source in sources:
        ends = source.get("eos_token_id")
        if ends is not None:
            ends = [ends] if isinstance(ends, int) else ends
            padding = next(
                (other["pad_token_id"] for other in sources if other.get("pad_token_id") is not None), ends[0]
            )
            return frozenset(ends), padding
    raise BakeoutError(
        f"Nothing in {directory} names the end-of-text token.", "Put the model's config.json beside the graph."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file, empty where there is no such file. Raises ``BakeoutError`` for anything else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BakeoutError(f"{path} cannot be read ({error}).", "Copy the model again.") from None
    if not isinstance(content, dict):
        raise BakeoutError(f"{path} is not a JSON object.", "Copy the model again.")
    return content
