"""Files that are added to an artifact after it was baked: certificates and records."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from bakeout.export.artifacts.file_names import SIGNATURE
from bakeout.export.artifacts.manifest import read_manifest, write_manifest
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.writing import replace_file

_LOG = logging.getLogger("bakeout")


def add_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write ``files``, text by name, into an artifact, and its manifest anew, whose other digests stay as they are.

    A signature, which no longer holds, is removed, and a log line tells so.
    """
    manifest = read_manifest(directory)
    for name, text in files.items():
        replace_file(directory / name, text)
    known = {name: entry["sha256"] for name, entry in manifest["files"].items() if (directory / name).is_file()}
    known |= {name: hash_file(directory / name) for name in files}
    if (directory / SIGNATURE).is_file():
        (directory / SIGNATURE).unlink()
        _LOG.warning("%s signed the artifact as it was before, and is removed: sign it again.", SIGNATURE)
    write_manifest(directory, {key: value for key, value in manifest.items() if key not in ("files", "schema")}, known)
