"""The manifest of an artifact: the digest of every file, the receipts, and what the artifact was made of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.file_names import ADDED, MANIFEST, SIGNATURE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_files
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.report import Figures
from bakeout.models.plan.model_identity import ModelIdentity
from bakeout.models.plan.receipt import Receipt

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class BaseFigures(Figures):
    """What the base model answered on rows that are known by their SHA-256: as of ``evaluation.rows.Row``.

    ``how`` answers were generated and judged; None for greedy ones, judged by exact match.
    """

    digest: str
    prompts: int
    accuracy: float
    refusals: float
    cut_off: float | None = None
    available: int | None = None
    how: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        shares = self.accuracy, self.refusals, self.cut_off or 0.0
        if min(self.prompts, self.available or 1) < 1 or not all(0 <= share <= 1 for share in shares):
            raise PlanError("base_figures holds a count or a share that is none")


@dataclass(frozen=True, kw_only=True)
class _Entries(Figures):
    """What a manifest holds beside ``files``. Artifacts of earlier versions lack some of it."""

    receipts: tuple[Receipt, ...]
    adapter: Mapping[str, str] | None = None
    base: ModelIdentity | None = None
    base_figures: tuple[BaseFigures, ...] | None = None
    data: Mapping[str, Mapping[str, str]] | None = None
    plan: str | None = None
    versions: Mapping[str, Mapping[str, str]] | None = None
    options: Mapping[str, Any] | None = None
    canary: str | None = None
    decoding: tuple[str, ...] | None = None
    end_of_text: tuple[str, ...] | None = None


def file_digests(directory: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every file below ``directory`` but manifest and signature: its name (with ``/``) to its ``sha256`` and ``size``.

    ``known``: the SHA-256 of files that were copied from where they were hashed, and need not be hashed again.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    names = [name for name in names if name not in (MANIFEST, SIGNATURE)]
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
    text = manifest_text({**entries, "schema": SCHEMA, "files": file_digests(directory, known)})
    (directory / MANIFEST).write_text(text, encoding="utf-8", newline="\n")


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as its file holds it."""
    return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact, its ``files`` and ``receipts`` checked for form. Raises ``BakeoutError``."""
    path = directory / MANIFEST
    try:
        manifest = parse_json(read_regular(path).decode("utf-8"), finite=True)
    except (FileNotFoundError, NotADirectoryError):
        if directory.is_file():
            raise BakeoutError(
                f"{directory} is a file, not an artifact's directory.",
                "Name the directory; `bakeout inspect` shows a plan's file.",
            ) from None
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
        _entries(manifest)
    except PlanError as error:
        raise _malformed(path, error.cause) from None
    return manifest


def receipts_for(graph: Path, receipts: Iterable[Receipt]) -> list[Receipt]:
    """Of the receipts of an artifact those of ``graph``: of the graphs of a pair each has its own."""
    return [receipt for receipt in receipts if receipt.detail.get("graph", graph.name) == graph.name]


def receipts_of(manifest: Mapping[str, Any]) -> tuple[Receipt, ...]:
    """The receipts in a manifest that was read."""
    return _entries(manifest).receipts


def adapter_of(manifest: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Whose adapter a policy is, ``form`` (``onnx`` or ``peft``), and over which ``artifact``; None for an artifact."""
    told = _entries(manifest).adapter
    if told is not None and told.get("form") not in ("onnx", "peft"):
        raise BakeoutError(f"The manifest is of an adapter of the form {told.get('form')!r}.", "Export it again.")
    return told


def content_digest(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of what was baked or exported: of the digests of all files but those added since."""
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name not in ADDED}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def base_figures_of(manifest: Mapping[str, Any]) -> tuple[BaseFigures, ...]:
    """The base model's figures in a manifest that was read; none where it was not measured."""
    return _entries(manifest).base_figures or ()


def _entries(manifest: Mapping[str, Any]) -> _Entries:
    """What a manifest says of how it was made. Raises ``PlanError``, naming the entry, for values of other types.

    Entries that this version does not know are left alone.
    """
    known = {own.name for own in fields(_Entries)}
    return _Entries.from_json({name: entry for name, entry in manifest.items() if name in known}, "the manifest")


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
