"""What lies beside a graph or a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path

from bakeout.models.files.links import require_own_file

# What travels with a model's weights: configuration, whatever a tokenizer of transformers reads, licence.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "*vocab.json",
    "merges*",
    "*.model",
    "*.spm",
    "*.codes",
    "*.tiktoken",
    "*.tokenizer",
    "dict.txt",
    "byte_maps.json",
    "emoji.json",
    "normalizer.json",
    "word_*.json",
    "*processor_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)


def companion_files(directory: Path) -> list[Path]:
    """A model's configuration, tokenizer and licence files in ``directory``, in order of name.

    Raises ``BakeoutError`` where one of them is a link that leads out of it.
    """
    companions = sorted({path for pattern in _COMPANIONS for path in directory.glob(pattern) if path.is_file()})
    for path in companions:
        require_own_file(path, directory)
    return companions
