"""The journal of searches: a line for each trial, with a checksum, from which a search that was cut goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeout.export.tuning.trials import Measured, Trial
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.files.writing import disk_errors
from bakeout.models.methods.search_space import Settings

_LOG = logging.getLogger(__name__)
_KEYS = {"search", "trial", "settings", "forget", "retain", "divergence"}


class Journal:
    """The trials of the search ``name`` in a file that other searches' trials may lie in too.

    A line that was cut at the file's end counts as never written, which a log line says; damage anywhere else is a
    ``BakeoutError``.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._whole, self.trials = self._read()
        self.written = len(self.trials)

    def measured(self, number: int, settings: Settings) -> Measured | None:
        """What trial ``number`` measured, if it is in the file. Raises ``BakeoutError`` where it had other settings."""
        if number >= len(self.trials):
            return None
        trial = self.trials[number]
        if dict(trial.settings) != dict(settings):
            raise _unusable(self._path, f"trial {number + 1} is of {dict(trial.settings)}, and should be of {settings}")
        return trial.measured

    def append(self, trial: Trial) -> None:
        """Write one trial more, forced to the disk."""
        entry = {"search": self._name, "trial": self.written, **trial.as_json()}
        line = json.dumps({**entry, "sha256": _checksum(entry)}) + "\n"
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.truncate(self._whole)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        self._whole += len(line)
        self.written += 1

    def _read(self) -> tuple[int, Sequence[Trial]]:
        """How many bytes are whole lines, and the trials of the search."""
        try:
            content = read_regular(self._path)
        except FileNotFoundError:
            return 0, ()
        except OSError as error:
            raise BakeoutError(f"{self._path}: cannot be read ({error.strerror}).", "Check the path.") from None
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            _LOG.info(f"the last line of {self._path} was cut; its trial is measured again")
        trials: list[Trial] = []
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            entry = self._entry(line, number)
            if entry["search"] == self._name:
                if entry["trial"] != len(trials):
                    raise _unusable(self._path, f"line {number} is trial {entry['trial'] + 1}, after {len(trials)}")
                trials.append(Trial(entry["settings"], Measured.from_json(entry)))
        return whole, trials

    def _entry(self, line: bytes, number: int) -> Mapping[str, Any]:
        try:
            entry = parse_json(line)
            checksum = entry.pop("sha256")
            if checksum == _checksum(entry) and entry.keys() == _KEYS:
                return dict(entry)
        except (ValueError, AttributeError, KeyError, TypeError):
            pass
        raise _unusable(self._path, f"line {number} is damaged, or another version wrote it")


def _checksum(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _unusable(path: Path, why: str) -> BakeoutError:
    return BakeoutError(f"{path}: {why}.", "Remove it: the search begins again.")
