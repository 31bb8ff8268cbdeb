"""What lies beside a graph or a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.links import require_own_file

# Chat templates with names of their own, beside the default one.
OTHER_TEMPLATES = "additional_chat_templates"
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
    f"{OTHER_TEMPLATES}/*.jinja",
    "LICENSE*",
    "NOTICE*",
)


def companion_files(directory: Path) -> list[Path]:
    """A model's configuration, tokenizer and licence files in ``directory`` and below it, in order of name.

    Raises ``BakeoutError`` where one of them is a link that leads out of it.
    """
    companions = sorted({path for pattern in _COMPANIONS for path in directory.glob(pattern) if path.is_file()})
    for path in companions:
        require_own_file(path, directory)
    return companions


def companion_name(path: Path) -> str:
    """The name of a companion file in the directory that it travels to."""
    return f"{OTHER_TEMPLATES}/{path.name}" if path.parent.name == OTHER_TEMPLATES else path.name


def copy_companions(paths: Iterable[Path], directory: Path) -> None:
    """Copy companion files into ``directory``."""
    for path in paths:
        target = directory / companion_name(path)
        target.parent.mkdir(exist_ok=True)
        copy_by_kernel(path, target)
