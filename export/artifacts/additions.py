"""Files that are added to an artifact after it was baked: certificates and records."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_checks import compare_files, irregular_entries
from bakeout.export.artifacts.file_names import CARD, ERASURE_RECORD, MANIFEST, SIGNATURE
from bakeout.export.artifacts.manifest import manifest_text, read_manifest
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import forget_killed, replace_files
from bakeout.models.progress import Track, untracked

_LOG = logging.getLogger("bakeout")
# What is removed because it is of the artifact as it was before, and how it is made again.
_AGAIN = {SIGNATURE: "sign it", ERASURE_RECORD: "record the request"}


def require_unchanged(directory: Path, beside: Collection[str] = (), *, track: Track = untracked) -> dict[str, Any]:
    """The manifest of an artifact whose files are as it lists them, and no others, those named ``beside`` left aside.

    What a command that was killed left there is removed. Raises ``BakeoutError``.
    """
    manifest = read_manifest(directory)
    for name in (MANIFEST, SIGNATURE):
        forget_killed(directory / name)
    files = {name: entry for name, entry in manifest["files"].items() if name not in beside}
    irregular = irregular_entries(directory)
    wrong = "; ".join(f"{name} is {what}" for name, what in irregular.items())
    if not irregular:
        is_same, told = compare_files(directory, files, track, beside=beside)
        wrong = "" if is_same else told
    if wrong:
        raise BakeoutError(
            f"{directory} is not what its manifest lists: {wrong}.", "Move other files away; copy or bake it again."
        )
    return manifest


def add_files(directory: Path, files: Mapping[str, str], *, without: Collection[str] = ()) -> None:
    """Write ``files``, text by name, into an artifact, remove those ``without``, and write its manifest anew.

    A signature, which no longer holds, is removed, and a log line tells so. Raises ``BakeoutError``, changing nothing,
    where the artifact is not what its manifest lists, and where the disk is full.
    """
    replaced = {*files, *without}
    # The text of a card is kept: it must be the manifest's, or what the same command wrote before it was killed.
    if CARD in files and not _holds(directory / CARD, files[CARD]):
        replaced.remove(CARD)
    manifest = require_unchanged(directory, replaced)
    entries = {name: entry for name, entry in manifest["files"].items() if name not in without}
    for name, text in files.items():
        content = text.encode()
        entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    outdated = [name for name in (*without, SIGNATURE) if (directory / name).is_file()]
    replace_files(directory, {**files, MANIFEST: manifest_text({**manifest, "files": entries})}, outdated)
    for name in outdated:
        if name in _AGAIN:
            _LOG.warning("%s was of the artifact as it was before, and is removed: %s again.", name, _AGAIN[name])


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
