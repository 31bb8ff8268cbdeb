"""How long tokens may be: to add one to a tokenizer takes a time that grows with the square of its length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.reading import read_regular

# In characters. With 10,000 it takes seconds, with 100,000 minutes.
LONGEST_TOKEN = 1_000
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def require_short_tokens(directory: Path) -> None:
    """Raise ``BakeoutError`` where a file of the tokenizer in ``directory`` adds a token that is too long.

    Raises ``OSError`` for a file that cannot be read.
    """
    for path in (directory / name for name in _FILES):
        if path.is_file() and _may_hold_long_texts(read_regular(path)):
            longest = max(map(len, _texts(_tokens(path.name, read_json(path)))), default=0)
            if longest > LONGEST_TOKEN:
                raise BakeoutError(
                    f"{path}: a token has {longest} characters, more than {LONGEST_TOKEN}; to add it takes minutes.",
                    "Copy the tokenizer again.",
                )


def _may_hold_long_texts(content: bytes) -> bool:
    """Whether the JSON document is worth reading, which takes seconds for some: quotes within texts count as text."""
    return max(map(len, content.replace(b'\\"', b"..").split(b'"'))) > LONGEST_TOKEN


def _tokens(name: str, content: dict[str, Any]) -> Any:
    if name == "tokenizer.json":
        return content.get("added_tokens")
    if name == "tokenizer_config.json":
        return [value for key, value in content.items() if "token" in key]
    return content


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from content
        yield from _texts(list(content.values()))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)
