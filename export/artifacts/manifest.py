"""The manifest of an artifact: the digest of every file, the receipts, and what the artifact was made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_files
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.receipt import Receipt

SCHEMA = 1


def file_digests(directory: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every file below ``directory`` but the manifest: its name (with ``/``) to its ``sha256`` and ``size``.

    ``known``: the SHA-256 of files that were copied from where they were hashed, and need not be hashed again.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST]
    unknown = [name for name in names if name not in known]
    digests = {**known, **dict(zip(unknown, hash_files([directory / name for name in unknown]), strict=True))}
    return {name: {"sha256": digests[name], "size": (directory / name).stat().st_size} for name in names}


def write_manifest(
    directory: Path, entries: Mapping[str, Any], known: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write ``bakeout.json``: the digests of all files that lie in ``directory`` by now, and ``entries``.

    ``entries`` is JSON and must not hold what differs from build to build: times, paths, host names. ``known`` as of
    ``file_digests``.
    """
    manifest = {**entries, "schema": SCHEMA, "files": file_digests(directory, known)}
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact, its ``files`` and ``receipts`` checked for form. Raises ``BakeoutError``."""
    path = directory / MANIFEST
    try:
        manifest = parse_json(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        raise BakeoutError(
            f"{directory} holds no {MANIFEST}, so it is not an artifact.", "Name what `bakeout bake` or `build` wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise _malformed(path, str(error)) from None
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise _malformed(path, "no schema number")
    if manifest["schema"] != SCHEMA:
        raise BakeoutError(
            f"{path} has schema {manifest['schema']!r}; this Bakeout reads {SCHEMA}.",
            "Use the version of Bakeout that wrote it.",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_file_entry(name, entry) for name, entry in files.items()):
        raise _malformed(path, "`files` is not a table of digests and sizes")
    try:
        receipts_of(manifest)
    except PlanError as error:
        raise _malformed(path, error.cause) from None
    return manifest


def receipts_of(manifest: Mapping[str, Any]) -> tuple[Receipt, ...]:
    """The receipts in a manifest. Raises ``PlanError`` where something else is in their place."""
    receipts = manifest.get("receipts")
    if not isinstance(receipts, list):
        raise PlanError("`receipts` is not a list of receipts")
    return tuple(Receipt.from_json(receipt, f"receipts.{number}") for number, receipt in enumerate(receipts))


def _is_file_entry(name: str, entry: Any) -> bool:
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return (
        inside
        and isinstance(entry, dict)
        and entry.keys() == {"sha256", "size"}
        and type(entry["size"]) is int
        and re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])) is not None
    )


def _malformed(path: Path, why: str) -> BakeoutError:
    return BakeoutError(f"{path} is not a manifest ({' '.join(why.split())}).", "Copy or bake the artifact again.")
