"""Digests of what lies in a directory: bytes that must stay, and JSON whose values must stay."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from digest_items import OUTPUT

# Written for people, who may get other words; and the journal of searches, which holds the version.
_PROSE = (".md", ".html", ".yaml", ".log")
# Copied from the checkpoint: digested, as they are large and never written by Bakeout.
_COPIED = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
}
_VERSIONS = "versions"


def contents(directory: Path, printed: Mapping[str, Any]) -> dict[str, Any]:
    """``bytes``: file, or file and tensor, to SHA-256. ``values``: JSON by file. ``prose``: SHA-256 and size by file.

    Symbolic links, which are the inputs, are left out. ``printed`` joins the values: by command what it printed. A
    safetensors file whose header holds JSON (a plan) is digested tensor by tensor, any other one as a whole too.
    """
    digests: dict[str, str] = {}
    values: dict[str, Any] = dict(printed)
    prose: dict[str, tuple[str, int]] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(directory).as_posix()
        sha256 = _sha256(path.read_bytes())
        described = None
        if path.suffix == ".safetensors":
            tensors, described = _tensors(path)
            digests.update({f"{name}: {tensor}": digest for tensor, digest in tensors.items()})
        elif path.suffix == ".json" and path.name not in _COPIED:
            described = json.loads(path.read_text(encoding="utf-8"))
        if described is not None:
            values[name] = described
        if described is not None or path.suffix in _PROSE:
            prose[name] = (sha256, path.stat().st_size)
        else:
            digests[name] = sha256
    return {"bytes": digests, "values": values, "prose": prose}


def normalised(item: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """``contents`` without what differs from version to version and from place to place.

    The output's path is cut off, ``versions`` are moved to an entry of their own, and the digests and sizes of files
    that may be worded anew give way to their names.
    """
    versions: dict[str, Any] = {}
    names = {sha256: (name, size) for name, (sha256, size) in item["prose"].items()}
    outputs = re.compile(rf"(?:{re.escape(str(directory))}/)?{OUTPUT}/|{re.escape(str(directory))}/")

    def visit(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [visit(element, f"{where}[{index}]") for index, element in enumerate(value)]
        if isinstance(value, str):
            return f"(sha256 of {_cut(names[value][0])})" if value in names else _cut(value)
        if not isinstance(value, dict):
            return value
        kept = {}
        sizes = {names[digest][1] for digest in value.values() if isinstance(digest, str) and digest in names}
        for key, entry in value.items():
            place = f"{where}.{_cut(key)}" if where else _cut(key)
            if key == _VERSIONS:
                versions[place] = entry
            elif key == "size" and entry in sizes:
                kept[key] = "(size)"
            else:
                kept[_cut(key)] = visit(entry, place)
        return kept

    def _cut(text: str) -> str:
        return outputs.sub("", text)

    return {
        "bytes": {_cut(name): digest for name, digest in item["bytes"].items()},
        "values": visit(item["values"], ""),
        "prose": [_cut(name) for name in item["prose"]],
        _VERSIONS: versions,
    }


def _tensors(path: Path) -> tuple[dict[str, str], Any]:
    """The digest of every tensor, its type and shape among what is digested, and the JSON in the header, if any."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        described = f"{entry['dtype']} {entry['shape']} ".encode()
        tensors[name] = _sha256(described + data[end + first : end + last])
    return tensors, {key: json.loads(text) for key, text in metadata.items() if text.startswith("{")} or None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
