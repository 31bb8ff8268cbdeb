"""What a certificate has measured so far, a line for each step, so that a run that was cut goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import may_be_cut_line, parse_json, read_regular
from bakeout.models.files.writing import disk_errors, require_new

Json = Any

# The first bytes of every line.
_START = b'{"name": "'


class Journal:
    """The steps of the measurement ``name``, a digest of all that its figures depend on.

    ``base_name``: the same of what is measured on the base model alone, which certificates of several artifacts share.
    The file may hold other measurements' steps too. A line that was cut at its end counts as never written; damage
    anywhere else is a ``BakeoutError``. Without a ``path`` nothing is kept.
    """

    def __init__(self, path: Path | None, name: str, base_name: str | None = None) -> None:
        self._path = path
        self._name = name
        self._base_name = base_name or name
        self._done: dict[tuple[str, str], Json] = {}
        self._whole = 0
        if path is not None and os.path.lexists(path):
            self._whole = self._read(path)
        elif path is not None:
            require_new(path)

    def step(self, step: str, measure: Callable[[], Json], *, of_base: bool = False) -> Json:
        """What ``step`` gave before, or what ``measure`` gives now: JSON, forced to the disk.

        ``of_base``: it is measured on the base model alone.
        """
        key = (self._base_name if of_base else self._name, step)
        if key not in self._done:
            # As it will be read.
            result = json.loads(json.dumps(measure(), allow_nan=False))
            self._append(*key, result)
            self._done[key] = result
        return self._done[key]

    def __contains__(self, step: str) -> bool:
        return (self._name, step) in self._done

    def _append(self, name: str, step: str, result: Json) -> None:
        if self._path is None:
            return
        entry = {"name": name, "step": step, "result": result}
        # In ASCII: a step is named after a data file too, whose name need not be UTF-8.
        line = (json.dumps({**entry, "sha256": _checksum(entry)}) + "\n").encode()
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.truncate(self._whole)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._whole += len(line)

    def _read(self, path: Path) -> int:
        try:
            content = read_regular(path)
        except OSError as error:
            raise BakeoutError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from None
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            entry = _entry(line)
            if entry is None:
                raise _no_step(path, number)
            if entry["name"] in (self._name, self._base_name):
                self._done[entry["name"], entry["step"]] = entry["result"]
        tail = content[whole:]
        # A file of one line without a line end, which another program wrote, must not be emptied.
        if tail and not may_be_cut_line(tail, _START) and _entry(tail) is None:
            raise _no_step(path, len(lines) + 1)
        return whole


def _no_step(path: Path, number: int) -> BakeoutError:
    return BakeoutError(f"{path}, line {number}: not a step of a certificate.", "Name another file for `journal`.")


def _entry(line: bytes) -> Mapping[str, Json] | None:
    try:
        entry = parse_json(line.decode("utf-8"), half_pairs=True)
        checksum = entry.pop("sha256")
        if checksum == _checksum(entry) and entry.keys() == {"name", "step", "result"}:
            return dict(entry)
    except (ValueError, AttributeError, KeyError, TypeError):
        pass
    return None


def _checksum(entry: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
