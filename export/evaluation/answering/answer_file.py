"""A file of answers, written while they are given: an evaluation that was cut goes on where it stopped.

A line of JSON each: the key (what the answer depends on, as a digest), the model's and the data's name, the row's
place, and the answer as tokens and text. Lines are only ever appended, and a line that was cut short is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import may_be_cut_line, parse_json, read_regular
from bakeout.models.files.writing import disk_errors, require_new, write_file

# The first bytes of every line.
_START = b'{"key": "'


class AnswerFile:
    """The answers that ``path`` holds, and those to come. Raises ``BakeoutError`` where it holds anything else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[int]] = {}
        if not os.path.lexists(path):
            require_new(path)
            write_file(path, b"")
            return
        try:
            content = read_regular(path)
        except OSError as error:
            raise BakeoutError(
                f"{path} cannot be read ({error.strerror}).", "Name another file for `answers`."
            ) from None
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines, start=1):
            key, tokens = self._read(line, number)
            self._known[key] = tokens
        if tail := content[len(whole) :]:
            # A file of one line without a line end, which another program wrote, must not be emptied.
            if not may_be_cut_line(tail, _START):
                self._read(tail, len(lines) + 1)
            with disk_errors(path):
                os.truncate(path, len(whole))

    def answer(self, key: str) -> list[int] | None:
        """The tokens of the answer with this key, if it has been given."""
        return self._known.get(key)

    def add(self, key: str, tokens: Sequence[int], described: Mapping[str, Any]) -> None:
        """Write an answer down, so that it stays whatever happens next. Raises ``BakeoutError`` where it cannot."""
        self._known[key] = list(tokens)
        content = {"key": key, **described, "tokens": list(tokens), "check": _check(key, tokens)}
        # In ASCII: the data's name may be that of a file, which need not be UTF-8.
        line = json.dumps(content) + "\n"
        with disk_errors(self._path), self._path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def _read(self, line: bytes, number: int) -> tuple[str, list[int]]:
        try:
            row = parse_json(line.decode("utf-8"), half_pairs=True)
            key, tokens, check = row["key"], row["tokens"], row["check"]
        except (ValueError, LookupError, TypeError):
            key, tokens, check = "", None, None
        is_answer = isinstance(key, str) and isinstance(tokens, list) and all(type(token) is int for token in tokens)
        if not is_answer or check != _check(key, tokens):
            raise BakeoutError(
                f"{self._path}, line {number}: not an answer of an evaluation.", "Name another file for `answers`."
            )
        return key, tokens


def _check(key: Any, tokens: Any) -> str:
    """What a line that was changed no longer has."""
    return hashlib.sha256(json.dumps([key, tokens]).encode()).hexdigest()[:16]


def answer_key(model: str, prompt: Sequence[int], decoding: Mapping[str, Any]) -> str:
    """What an answer depends on, as a digest: the model's files, the prompt's tokens, and how tokens are chosen."""
    content = json.dumps([model, list(prompt), decoding], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
