"""Plans as files: one safetensors file, arrays beside one JSON entry in the metadata. No code, no pickle.

All JSON is under a single metadata key, because safetensors writes two or more keys in a random order.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from bakeout.models.files.artifact_names import PLAN
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.files.writing import write_file
from bakeout.models.plan.arrays import PlanError
from bakeout.models.plan.kinds.intervention import Intervention
from bakeout.models.plan.kinds.registry import find_kind
from bakeout.models.plan.model_identity import ModelIdentity
from bakeout.models.plan.plan import Canary, Plan

# The schema of the file as such; every kind of intervention has its own schema number.
SCHEMA = 1
_KEY = "bakeout"

Arrays = dict[str, np.ndarray[Any, Any]]


def plan_bytes(plan: Plan) -> bytes:
    """The plan as the bytes of a safetensors file. The same plan gives the same bytes."""
    arrays: Arrays = {"canary.input_ids": plan.canary.input_ids}
    described = []
    for index, intervention in enumerate(plan.interventions):
        described.append(_entry(intervention))
        arrays |= {f"interventions.{index}.{name}": array for name, array in intervention.arrays().items()}
        arrays[f"canary.expected.{index}"] = plan.canary.expected[index]
    text = json.dumps(
        {
            "schema": SCHEMA,
            "model": plan.model.as_json(),
            "interventions": described,
            "canary": _canary_entry(plan.canary),
            "provenance": plan.provenance,
        },
        sort_keys=True,
        allow_nan=False,
    )
    return save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {_KEY: text})


def save_plan(plan: Plan, path: Path) -> None:
    """Write a new plan file. Raises ``BakeoutError`` where ``path`` exists or cannot be written."""
    write_file(path, plan_bytes(plan))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read and validate a plan file.

    >>> sorted(bakeout.load_plan("plan.safetensors").provenance["data"])
    ['german', 'math']

    Raises ``PlanError``, a ``BakeoutError``, for anything that is not a whole, valid plan.
    """
    path = Path(path)
    try:
        data = read_regular(path)
        _require_safetensors(path, data)
        arrays = load_tensors(data)
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header["__metadata__"][_KEY]
        described = parse_json(text, finite=True)
    except OSError as error:
        # A directory, of whatever is no regular file.
        if error.errno == errno.EINVAL and (path / PLAN).is_file():
            raise PlanError(f"{path}: a directory, not a plan.", f"Name the plan in it: {path / PLAN}") from None
        raise PlanError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except (SafetensorError, ValueError) as error:
        raise PlanError(f"{path}: not a whole safetensors file ({error}).", "Copy or fit the plan again.") from None
    except (KeyError, TypeError):
        # A header's metadata may be null.
        raise PlanError(f"{path}: a safetensors file, but not a plan.", "Make one with `bakeout fit`.") from None
    try:
        schema = described["schema"]
        if schema != SCHEMA:
            raise PlanError(f"{path}: plan schema {schema}, this version reads {SCHEMA}.", _reader(described))
        return _plan(described, arrays)
    except PlanError as error:
        cause = error.cause if str(path) in error.cause else f"{path}: {error.cause}"
        raise PlanError(cause, error.remedy) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PlanError(f"{path}: the plan lacks or garbles {error}.", "Fit the plan again.") from None


def _require_safetensors(path: Path, data: bytes) -> None:
    """Raise ``PlanError`` for a file of another format. One that ends before its header begins may be a plan's."""
    if data[8:9] not in (b"{", b""):
        raise PlanError(f"{path}: not a plan (it is no safetensors file).", "Name a file that `bakeout fit` wrote.")


def _entry(intervention: Intervention) -> dict[str, Any]:
    own = {"kind": intervention.kind, "schema": intervention.schema_written, "report": intervention.report.as_json()}
    return own | intervention.settings()


def _canary_entry(canary: Canary) -> dict[str, Any]:
    """What of the canary is no array. Versions before 0.3.0 neither wrote nor read it."""
    return {
        "refused": None if canary.refused is None else list(canary.refused),
        "uncovered": list(canary.uncovered),
    }


def _canary_outcome(entry: Mapping[str, Any]) -> dict[str, Any]:
    refused, uncovered = entry.get("refused"), entry.get("uncovered", [])
    if refused is not None and not (
        isinstance(refused, list) and all(isinstance(is_refused, bool) for is_refused in refused)
    ):
        raise PlanError("The canary does not say which of its sequences are refused.")
    if not isinstance(uncovered, list) or not all(type(place) is int for place in uncovered):
        raise PlanError("The canary does not say which regions it leaves out.")
    return {"refused": None if refused is None else tuple(refused), "uncovered": tuple(uncovered)}


def _plan(described: Mapping[str, Any], arrays: Arrays) -> Plan:
    left = dict(arrays)

    def take(name: str, dtype: type, prefix: str = "") -> Any:
        array = left.pop(prefix + name)
        if array.dtype != dtype:
            raise PlanError(f"{prefix}{name} is {array.dtype}, not {np.dtype(dtype)}.")
        return array

    identity = ModelIdentity.from_json(described["model"], "model")
    interventions = []
    for index, entry in enumerate(described["interventions"]):
        kind = _kind(entry, described)
        own = partial(take, prefix=f"interventions.{index}.")
        interventions.append(kind.from_file(entry, own, kind.report_type.from_json(entry["report"])))
    expected = tuple(take(f"canary.expected.{index}", np.float64) for index in range(len(interventions)))
    canary = Canary(take("canary.input_ids", np.int64), expected, **_canary_outcome(described.get("canary", {})))
    if left:
        raise PlanError(f"The plan holds arrays that nothing refers to: {', '.join(sorted(left))}.")
    return Plan(identity, tuple(interventions), canary, _provenance(described))


def _kind(entry: Mapping[str, Any], described: Mapping[str, Any]) -> type[Intervention]:
    """The class that reads an entry of the plan that ``described`` describes."""
    kind = find_kind(entry["kind"])
    if kind is None:
        raise PlanError(f"The plan holds an intervention of unknown kind {entry['kind']!r}.", _reader(described))
    # Bakeout 0.1.0 wrote no schemas of kinds.
    schema = entry.get("schema", 1)
    if not 1 <= schema <= kind.schema:
        raise PlanError(
            f"The plan holds {kind.title} in schema {schema}; this version reads up to {kind.schema}.",
            _reader(described),
        )
    return kind


def _provenance(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the plan came from, whose ``versions`` and ``data`` are tables."""
    provenance = described["provenance"]
    if not isinstance(provenance, dict) or not isinstance(provenance.get("versions", {}), dict):
        raise PlanError("The plan's provenance is no table.")
    data = provenance.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(uses, dict) for uses in data.values()):
        raise PlanError("The plan's data are no table of digests.")
    return provenance


def _reader(described: Mapping[str, Any]) -> str:
    """What can read a plan that this version cannot: the version that wrote it."""
    wrote = _provenance(described).get("versions", {}).get("bakeout")
    return f"Use Bakeout {wrote} or later, with the packages it was fitted with." if wrote else "Use a newer Bakeout."
