"""A record of what was asked to be erased: by salted digests, so that it can be shown to anybody.

Whoever holds the salt proves what a request was, and nobody else can guess it. The record says what was done, and
whether that erases: checks and adjustments suppress.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.additions import add_files
from bakeout.export.artifacts.certificate_file import read_certificate
from bakeout.export.artifacts.file_names import CERTIFICATE, ERASURE_PAGE, ERASURE_RECORD, MANIFEST, PLAN
from bakeout.export.artifacts.manifest import adapter_of, content_digest, read_manifest
from bakeout.models.data.row_source import DataError, Source, source_digest, source_lines, source_name
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.json_object import read_json
from bakeout.models.plan import Plan
from bakeout.models.plan.hiding import salted
from bakeout.models.plan.plan_file import load_plan

SCHEMA = 1
_SUPPRESSES = (
    "Checks and adjustments are nodes in the graph: they suppress and do not erase. The weights are those of the base "
    "model, and whoever cuts the nodes out has its answers back."
)
_EDITS = (
    "Weights were edited: no node can be cut out. That is no proof of erasure: fine-tuning and quantising can bring "
    "back a part, and whoever has the base model can undo the change."
)


def erasure_record(
    directory: Path,
    requests: Mapping[str, Source],
    salt: bytes,
    *,
    derived: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """The record of an artifact as JSON: no name and no content of what was asked, digests alone.

    ``requests``: the rows that were asked to be forgotten, by name; ``derived``: other artifacts that were made of this
    one, or with it, by what they are called. Raises ``BakeoutError`` for what cannot be read, for a request without
    rows, and for one that is data of the plan which it does not forget.
    """
    manifest = read_manifest(directory)
    plan = load_plan(directory / PLAN)
    _require_forgotten(plan, requests.values())
    return {
        "schema": SCHEMA,
        "requests": [
            {"name": salted(name.encode(), salt), **_rows(source, salt)} for name, source in sorted(requests.items())
        ],
        "salt": {"function": "BLAKE2b-256, keyed with BLAKE2b-512 of the salt", "kept_by": "whoever wrote the record"},
        "methods": [
            {
                "title": intervention.title,
                "erases": False,
                "acts_on": "weights" if intervention.edits_weights else "graph",
            }
            for intervention in plan.interventions
        ],
        "statements": list(_statements(plan)),
        "artifact": {
            "plan": manifest["files"][PLAN]["sha256"],
            "base_model": plan.model.digest,
            "options": dict(manifest.get("options", {})),
            **({"adapter": {**told, "sha256": content_digest(manifest)}} if (told := adapter_of(manifest)) else {}),
        },
        "measured": _measured(directory),
        "derived": {name: _derived(path) for name, path in sorted((derived or {}).items())},
    }


def add_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Write a record into the artifact, as JSON and as a page.

    Raises ``BakeoutError`` where the artifact has a record of something that this one lacks, and as ``add_files`` does.
    """
    # What the manifest does not list is not a record: a command that was killed left it.
    is_recorded = ERASURE_RECORD in read_manifest(directory)["files"]
    if is_recorded and not _includes(record, read_json(directory / ERASURE_RECORD)):
        raise BakeoutError(
            f"{directory / ERASURE_RECORD} has requests or derived files that are not named here, or another salt.",
            "Name the old and the new ones in one command, with the same salt, or use a fresh copy of the artifact.",
        )
    add_files(directory, {ERASURE_RECORD: record_text(record), ERASURE_PAGE: "\n".join([*page(record), ""])})


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The record as lines of Markdown."""
    yield "# Erasure record"
    yield ""
    yield "What was asked to be forgotten, as digests that only the holder of the salt can compute:"
    yield ""
    yield "| request | rows | digest |"
    yield "| --- | --- | --- |"
    for request in record["requests"]:
        yield f"| `{request['name'][:16]}…` | {request['rows']} | `{request['digest']}` |"
    yield ""
    yield "| method | acts on | erases |"
    yield "| --- | --- | --- |"
    for method in record["methods"]:
        yield f"| {method['title']} | {method['acts_on']} | no, or not proven |"
    yield ""
    for statement in record["statements"]:
        yield f"* {statement}"
    yield ""
    measured = record["measured"]
    if measured is None:
        yield "Not measured: `bakeout certify` has not been run on this artifact."
    else:
        precisions = ", ".join(measured["precisions"])
        yield f"Measured by protocol {measured['protocol']} in {precisions}: `{CERTIFICATE}`, `{measured['sha256']}`."
    yield ""
    yield f"Base model `{record['artifact']['base_model']}`, plan `{record['artifact']['plan']}`."
    if adapter := record["artifact"].get("adapter"):
        over = f", over the artifact `{adapter['artifact']}`" if "artifact" in adapter else ""
        yield ""
        yield f"A policy: an adapter for {adapter['form']}{over}, `{adapter['sha256']}`."
    for name, digest in record["derived"].items():
        yield ""
        yield f"Derived: {name}, `{digest}`."


def record_text(record: Mapping[str, Any]) -> str:
    """The record as its file holds it."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def holds(record: Mapping[str, Any], row: bytes, salt: bytes) -> bool:
    """Whether ``row``, a line of a request's file, is among what a record says was asked.

    >>> one = {"requests": [{"each": [salted(b"a row", b"salt" * 8)]}]}
    >>> holds(one, b"a row", b"salt" * 8), holds(one, b"a row", b"pepper" * 8)
    (True, False)
    """
    digest = salted(row, salt)
    return any(digest in request["each"] for request in record["requests"])


def _require_forgotten(plan: Plan, requests: Iterable[Source]) -> None:
    """Raise ``BakeoutError`` for a request whose file the plan knows, under names alone that it does not forget."""
    for source in requests:
        names = plan.known_as(source_digest(source))
        if names and not set(names) & set(plan.forgets):
            raise BakeoutError(
                f"{source_name(source)} was not forgotten: the plan has it as {names[0]}, and forgets "
                f"{', '.join(plan.forgets) or 'no data by name'}.",
                "Leave the file out, or fit a plan that forgets it.",
            )


def _includes(record: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether a record has all requests and all derived files of an ``earlier`` one as it was read."""
    requests, derived = earlier.get("requests", []), earlier.get("derived", {})
    return (
        isinstance(requests, list)
        and all(request in record["requests"] for request in requests)
        and isinstance(derived, dict)
        and all(record["derived"].get(name) == digest for name, digest in derived.items())
    )


def _rows(source: Source, salt: bytes) -> dict[str, Any]:
    each = [salted(line.strip(), salt) for _, line in source_lines(source) if line.strip()]
    if not each:
        raise DataError(f"{source_name(source)}: there are no rows.", "Give the rows that are to be erased.")
    # Sorted: the order of the rows is nobody's business.
    return {"rows": len(each), "digest": salted("".join(sorted(each)).encode(), salt), "each": sorted(each)}


def _statements(plan: Plan) -> Iterator[str]:
    if plan.edits_graph:
        yield _SUPPRESSES
    if plan.edits_weights:
        yield _EDITS


def _measured(directory: Path) -> dict[str, Any] | None:
    certificate = read_certificate(directory)
    if certificate is None:
        return None
    precisions = dict.fromkeys(figure["precision"] for figure in certificate["figures"])
    return {
        "sha256": hash_file(directory / CERTIFICATE),
        "protocol": certificate["protocol"]["version"],
        "precisions": list(precisions),
    }


def _derived(path: Path) -> str:
    return hash_file(path / MANIFEST if path.is_dir() else path)
