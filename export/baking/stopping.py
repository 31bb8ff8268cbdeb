"""What an artifact's configuration files must say so that every decode loop says its refusal whole, and then stops."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.decoding_bans import find_bans
from bakeout.models.checkpoint.end_of_text import (
    CONFIG,
    GENAI,
    GENERATION,
    TOKENIZER,
    files_that_end_texts,
    read_end_of_text,
    special_token_text,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# The parts of the files that say how to decode; the empty name is the whole file.
_SETTINGS = {GENERATION: "", CONFIG: "", GENAI: "search"}

_logger = logging.getLogger(__name__)


def let_refusal_stop(directory: Path, refusal: Sequence[int], other_ends: Sequence[int] = ()) -> dict[str, list[str]]:
    """Change the configuration files in ``directory`` where a decode loop that reads them would garble ``refusal``.

    Where its last token is not one at which all files say that a text ends, each names it, with all that any of them
    names; settings that forbid its tokens are lifted. Files that need no change are left as they are. What was
    changed is logged, and returned for the manifest: ``end_of_text`` and ``decoding``, where there is any. So are
    tokens that the files name and that the plan, by its ``other_ends``, does not hold down.

    Raises ``BakeoutError`` for files that cannot be read, and where they end a text in the middle of the refusal.
    """
    if cut := read_end_of_text(directory).cut(refusal):
        raise BakeoutError(f"{cut}: the refusal would be cut there.", "Fit the plan with another `refusal`.")
    told = {
        "end_of_text": [*_agree_on_ends(directory, refusal[-1]), *_not_held_down(directory, refusal[-1], other_ends)],
        "decoding": _lift_bans(directory, refusal),
    }
    for line in (line for lines in told.values() for line in lines):
        _logger.warning("%s", line)
    return {name: lines for name, lines in told.items() if lines}


def _agree_on_ends(directory: Path, last: int) -> list[str]:
    ends = read_end_of_text(directory)
    read = files_that_end_texts(directory)
    lacking = [name for name in read if last not in ends.named.get(name, ())]
    lines = []
    if lacking:
        tokens = list(dict.fromkeys([last, *ends.tokens]))
        changed = [name for name in read if set(ends.named.get(name, ())) != set(tokens)]
        for name in changed:
            part = "model" if name == GENAI else ""
            _set(directory / name, part, {"eos_token_id": tokens if len(tokens) > 1 else last})
        lines.append(
            f"{' and '.join(lacking)} did not name {last}, which ends the refusal, as a token that ends a text: "
            f"{', '.join(changed)} now name{'s' if len(changed) == 1 else ''} {', '.join(map(str, tokens))}"
        )
    own = ends.named.get(TOKENIZER, (last,))
    if last not in own:
        lines.append(_set_tokenizer_end(directory, own[0], last))
    return lines


def _not_held_down(directory: Path, last: int, other_ends: Sequence[int]) -> list[str]:
    named = read_end_of_text(directory).tokens
    unknown = ", ".join(str(token) for token in named if token not in (last, *other_ends))
    if not unknown:
        return []
    return [
        f"the plan does not know that texts end with {unknown}: beam search with early stopping can cut the refusal "
        "there; fit it on a model whose generation_config.json names them"
    ]


def _set_tokenizer_end(directory: Path, old: int, new: int) -> str:
    """Loops written by hand stop at the tokenizer's ``eos_token`` alone."""
    text = special_token_text(directory, new)
    if text is None:
        # Made special, an ordinary token would cut the words that it is part of.
        return f"the refusal ends with {new}, and the tokenizer's eos_token is {old}: do not stop at the latter alone"
    for name in _TOKENIZER_FILES:
        if "eos_token" in read_json(directory / name):
            _set(directory / name, "", {"eos_token": text})
    return f"the tokenizer's eos_token was {old}; it is now {text} ({new}), which ends the refusal"


def _lift_bans(directory: Path, refusal: Sequence[int]) -> list[str]:
    lines = []
    for name, part in _SETTINGS.items():
        content = read_json(directory / name)
        settings = content.get(part) if part else content
        bans = list(find_bans(settings, refusal, name)) if isinstance(settings, dict) else []
        if bans:
            _set(directory / name, part, {ban.name: ban.instead for ban in bans})
        lines += [f"{name}: {ban}, because it would garble the refusal" for ban in bans]
    return lines


def _set(path: Path, part: str, entries: Mapping[str, Any]) -> None:
    """Set entries of a JSON file's object, or of the object ``part`` in it; those that are None are removed."""
    content = read_json(path)
    changed = content.setdefault(part, {}) if part else content
    if not isinstance(changed, dict):
        raise BakeoutError(f"{path}: `{part}` is not a JSON object.", "Copy the model again.")
    for key, value in entries.items():
        if value is None:
            del changed[key]
        else:
            changed[key] = value
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
