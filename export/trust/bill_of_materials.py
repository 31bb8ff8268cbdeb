"""What an artifact was made of, as a CycloneDX bill of materials for machine learning (ECMA-424, version 1.7).

The artifact's content alone decides over every byte: there is no time in it, and the serial number is a digest. The
library cyclonedx-python-lib has no classes for model cards yet, so the document is written here, and validated there.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.certificate_file import read_certificate
from bakeout.export.artifacts.file_names import CERTIFICATE, MANIFEST, PLAN
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.artifacts.titles import described
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan
from bakeout.models.plan.hiding import is_hidden
from bakeout.models.plan.plan_file import load_plan

SPECIFICATION = "1.7"
_MODEL, _BASE, _PLAN = "model", "base-model", "plan"
_NAMESPACE = uuid.UUID("5b0ca5f0-8b9f-5d3e-9d0c-5f0f6a5b1c7a")
# A licence that SPDX does not list, as its expressions name it; the library knows listed ones alone.
_OWN_LICENSE = re.compile(r"(?<![\w.:-])(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+(?![\w.:-])")

Json = dict[str, Any]


def bill_of_materials(directory: Path, *, license: str | None = None, base_license: str | None = None) -> Json:
    """The bill of an artifact as JSON. ``license``: an SPDX expression; ``base_license``: one, or the licence's name.

    Where it is not given, the licence of the base model is that of the GGUF file that it came from, if that names one.
    Raises ``BakeoutError`` where there is no artifact, and for a ``license`` that is no SPDX expression.
    """
    if license is not None and not _is_expression(license):
        raise BakeoutError(
            f"{license!r} is no SPDX licence expression.",
            "Give `license` as in Apache-2.0, MIT OR GPL-2.0-only, or LicenseRef-NAME for one that SPDX does not list.",
        )
    manifest = read_manifest(directory)
    plan = load_plan(directory / PLAN)
    source = plan.provenance.get("source", {})
    data = list(_data(plan.provenance.get("data", {}), salted=is_hidden(plan)))
    base = _base(plan, base_license or source.get("license"))
    files = [_file(name, entry["sha256"]) for name, entry in sorted(manifest["files"].items()) if name != PLAN]
    model = _model(directory, plan, license, [part["bom-ref"] for part in data])
    components = [
        base,
        {"bom-ref": _PLAN, **_file(PLAN, manifest["files"][PLAN]["sha256"]), "description": _methods(plan)},
        *data,
        *files,
    ]
    content: Json = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "version": 1,
        "metadata": {"tools": {"components": _tools(manifest)}, "component": model},
        "components": components,
        "dependencies": [
            {"ref": _BASE, "dependsOn": []},
            {"ref": _MODEL, "dependsOn": [_BASE, _PLAN]},
            {"ref": _PLAN, "dependsOn": [_BASE, *sorted(part["bom-ref"] for part in data)]},
        ],
    }
    return {**content, "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True))}"}


def bill_text(content: Mapping[str, Any]) -> str:
    """A bill as its file holds it, validated against CycloneDX's strict schema.

    Raises ``BakeoutError`` where it is not valid, and ``ModuleNotFoundError`` without the extra ``trust``.
    """
    # The validator imports it when it is needed, and gives an error of its own.
    import jsonschema  # noqa: F401
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if wrong := JsonStrictValidator(SchemaVersion.from_version(SPECIFICATION)).validate_str(text):
        raise BakeoutError(
            f"The bill of materials is not valid CycloneDX {SPECIFICATION}: {' '.join(str(wrong).split())[:300]}.",
            "Give SPDX licence expressions; else this is a bug in Bakeout: please report it.",
        )
    return text


def _model(directory: Path, plan: Plan, license: str | None, data: Sequence[str]) -> Json:
    names = [*(f"without {name}" for name in plan.forgets), *(f"with {name}" for name in plan.learns)]
    digest = hash_file(directory / MANIFEST)
    certificate = read_certificate(directory)
    return {
        "bom-ref": _MODEL,
        "type": "machine-learning-model",
        "name": " ".join([plan.model.architecture, ", ".join(names) or "edited"]),
        "version": digest[:16],
        "description": _methods(plan),
        "hashes": _hashes(digest),
        **_licenses(license),
        "properties": _properties({"bakeout:digest": f"SHA-256 of {MANIFEST}, which lists every other file"}),
        "pedigree": {"ancestors": [{**_base(plan, None), "bom-ref": f"{_BASE}-ancestor"}], "notes": _methods(plan)},
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "decoder-only transformer",
                "modelArchitecture": plan.model.architecture,
                "datasets": [{"ref": reference} for reference in data],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(certificate))},
            "considerations": {"technicalLimitations": list(_limits(plan))},
            "properties": _properties(
                {
                    "bakeout:metrics": "none: bakeout certify has not measured this artifact"
                    if certificate is None
                    else f"{CERTIFICATE}, protocol {certificate['protocol']['version']}"
                }
            ),
        },
    }


def _base(plan: Plan, license: str | None) -> Json:
    model, source = plan.model, plan.provenance.get("source", {})
    told = {"bakeout:weights": "SHA-256 of the weights, as Bakeout hashes checkpoints"}
    if "sha256" in source:
        told["bakeout:gguf-sha256"] = source["sha256"]
    return {
        "bom-ref": _BASE,
        "type": "machine-learning-model",
        "name": str(source.get("name", model.architecture)),
        "description": f"{model.architecture}, {model.layers} layers, FFL width {model.width}",
        "hashes": _hashes(model.digest),
        **_licenses(license),
        "properties": _properties(told),
    }


def _licenses(expression: str | None) -> Json:
    """What CycloneDX calls a licence; nothing where none is recorded."""
    if expression is None:
        return {}
    try:
        known = _is_expression(expression)
    except ModuleNotFoundError:
        return {"licenses": [{"expression": expression}]}
    return {"licenses": [{"expression": expression} if known else {"license": {"name": expression}}]}


def _is_expression(text: str) -> bool:
    """Whether it is an SPDX expression. Raises ``ModuleNotFoundError`` without the extra ``trust``."""
    from cyclonedx.spdx import is_expression

    return bool(text.strip()) and is_expression(_OWN_LICENSE.sub("MIT", text))


def _data(data: Mapping[str, Mapping[str, str]], *, salted: bool) -> Iterator[Json]:
    """The rows that the plan was fitted and measured with, each use of each name.

    A ``salted`` digest is not what anybody computes of the file alone: no hash, as CycloneDX means it.
    """
    for name, uses in sorted(data.items()):
        for use, digest in sorted(uses.items()):
            yield {
                "bom-ref": f"data:{name}:{use}",
                "type": "data",
                "name": f"{name} ({use})",
                **({"properties": _properties({"bakeout:salted-digest": digest})} if salted else _hashed(digest)),
                "data": [{"type": "dataset", "name": name, "description": f"used for: {use}"}],
            }


def _metrics(certificate: Mapping[str, Any] | None) -> Iterator[Json]:
    """The certificate's figures, each with its interval and what it was measured on."""
    for figure in (certificate or {"figures": []})["figures"]:
        part = f"{figure['section']}: {figure['slice']}, {figure['precision']}"
        metric: Json = {"type": figure["name"], "value": f"{figure['value']:.6g}", "slice": part}
        if figure.get("interval"):
            low, high = figure["interval"]
            metric["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
        yield metric


def _limits(plan: Plan) -> Iterator[str]:
    if plan.edits_graph:
        yield "What is added to the graph suppresses answers and erases nothing: the weights still hold the knowledge."
    if plan.edits_weights:
        yield "Weights were edited: fine-tuning or quantising can bring back some of what was forgotten."


def _methods(plan: Plan) -> str:
    descriptions = [described(intervention, plan.model) for intervention in plan.interventions]
    return "; ".join(f"{description.title}: {description.summary}" for description in descriptions)


def _tools(manifest: Mapping[str, Any]) -> list[Json]:
    versions = manifest.get("versions", {}).get("baked_with", {})
    return [
        {"bom-ref": f"tool:{name}", "type": "library", "name": name, "version": version}
        for name, version in sorted(versions.items())
    ]


def _file(name: str, digest: str) -> Json:
    return {"type": "file", "name": name, "hashes": _hashes(digest)}


def _hashed(digest: str) -> Json:
    return {"hashes": _hashes(digest)}


def _hashes(digest: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(told: Mapping[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in sorted(told.items())]
