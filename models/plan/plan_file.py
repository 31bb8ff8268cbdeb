"""Plans as files: one safetensors file, arrays beside one JSON entry in the metadata. No code, no pickle.

All JSON is under a single metadata key, because safetensors writes two or more keys in a random order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from bakeout.models.files.writing import write_file
from bakeout.models.plan import (
    AdjustedLayer,
    Canary,
    Intervention,
    KeySpaceDetection,
    LowRankUpdate,
    ModelIdentity,
    NeuronAdjust,
    Plan,
    PlanError,
    WeightUpdate,
    ZeroColumns,
    ZeroedColumns,
)

SCHEMA = 1
_KEY = "bakeout"
_LAYER_ARRAYS = ("neurons", "forget_mean", "forget_deviation", "retain_mean", "retain_deviation")

Arrays = dict[str, np.ndarray[Any, Any]]
_Take = Callable[[str, type], Any]


def plan_bytes(plan: Plan) -> bytes:
    """The plan as the bytes of a safetensors file. The same plan gives the same bytes."""
    arrays: Arrays = {"canary.input_ids": plan.canary.input_ids}
    described = []
    for index, intervention in enumerate(plan.interventions):
        described.append(_describe(intervention, f"interventions.{index}", arrays))
        arrays[f"canary.expected.{index}"] = plan.canary.expected[index]
    text = json.dumps(
        {
            "schema": SCHEMA,
            "model": asdict(plan.model),
            "interventions": described,
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
        data = path.read_bytes()
        arrays = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header["__metadata__"][_KEY]
        described = json.loads(text)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except (SafetensorError, ValueError) as error:
        raise PlanError(f"{path}: not a whole safetensors file ({error}).", "Copy or fit the plan again.") from None
    except KeyError:
        raise PlanError(f"{path}: a safetensors file, but not a plan.", "Make one with `bakeout fit`.") from None
    try:
        schema = described["schema"]
        if schema != SCHEMA:
            raise PlanError(f"{path}: plan schema {schema}, this version reads {SCHEMA}.", "Use a matching Bakeout.")
        return _plan(described, arrays)
    except PlanError as error:
        cause = error.cause if str(path) in error.cause else f"{path}: {error.cause}"
        raise PlanError(cause, error.remedy) from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise PlanError(f"{path}: the plan lacks or garbles {error}.", "Fit the plan again.") from None


def _describe(intervention: Intervention, prefix: str, arrays: Arrays) -> dict[str, Any]:
    report = dict(intervention.report)
    if isinstance(intervention, NeuronAdjust):
        for layer in intervention.layers:
            for name in _LAYER_ARRAYS:
                arrays[f"{prefix}.layers.{layer.layer}.{name}"] = getattr(layer, name)
        return {
            "kind": intervention.kind,
            "coin": intervention.coin,
            "seed": intervention.seed,
            "layers": [layer.layer for layer in intervention.layers],
            "report": report,
        }
    if isinstance(intervention, ZeroColumns):
        for zeroed in intervention.layers:
            arrays[f"{prefix}.layers.{zeroed.layer}.columns"] = zeroed.columns
        return {
            "kind": intervention.kind,
            "layers": [zeroed.layer for zeroed in intervention.layers],
            "report": report,
        }
    if isinstance(intervention, LowRankUpdate):
        for update in intervention.updates:
            arrays[f"{prefix}.{update.layer}.{update.role}.left"] = update.left
            arrays[f"{prefix}.{update.layer}.{update.role}.right"] = update.right
        return {
            "kind": intervention.kind,
            "method": intervention.method,
            "weights": [[update.layer, update.role] for update in intervention.updates],
            "report": report,
        }
    for name in ("centre", "deviation", "alpha", "refusal"):
        arrays[f"{prefix}.{name}"] = getattr(intervention, name)
    return {
        "kind": intervention.kind,
        "layers": list(intervention.layers),
        "skills": list(intervention.skills),
        "positions": intervention.positions,
        "report": report,
    }


def _plan(described: Mapping[str, Any], arrays: Arrays) -> Plan:
    left = dict(arrays)

    def take(name: str, dtype: type) -> Any:
        array = left.pop(name)
        if array.dtype != dtype:
            raise PlanError(f"{name} is {array.dtype}, not {np.dtype(dtype)}.")
        return array

    identity = ModelIdentity(**described["model"])
    interventions = tuple(
        _intervention(entry, f"interventions.{index}", take) for index, entry in enumerate(described["interventions"])
    )
    expected = tuple(take(f"canary.expected.{index}", np.float64) for index in range(len(interventions)))
    canary = Canary(take("canary.input_ids", np.int64), expected)
    if left:
        raise PlanError(f"The plan holds arrays that nothing refers to: {', '.join(sorted(left))}.")
    return Plan(identity, interventions, canary, described["provenance"])


def _intervention(entry: Mapping[str, Any], prefix: str, take: _Take) -> Intervention:
    if entry["kind"] == NeuronAdjust.kind:
        layers = tuple(
            AdjustedLayer(
                layer,
                **{
                    name: take(f"{prefix}.layers.{layer}.{name}", np.int64 if name == "neurons" else np.float64)
                    for name in _LAYER_ARRAYS
                },
            )
            for layer in entry["layers"]
        )
        return NeuronAdjust(coin=entry["coin"], layers=layers, seed=entry["seed"], report=entry["report"])
    if entry["kind"] == KeySpaceDetection.kind:
        return KeySpaceDetection(
            layers=tuple(entry["layers"]),
            centre=take(f"{prefix}.centre", np.float64),
            deviation=take(f"{prefix}.deviation", np.float64),
            alpha=take(f"{prefix}.alpha", np.float64),
            skills=tuple(entry["skills"]),
            refusal=take(f"{prefix}.refusal", np.int64),
            positions=entry["positions"],
            report=entry["report"],
        )
    if entry["kind"] == ZeroColumns.kind:
        return ZeroColumns(
            tuple(
                ZeroedColumns(layer, take(f"{prefix}.layers.{layer}.columns", np.int64)) for layer in entry["layers"]
            ),
            report=entry["report"],
        )
    if entry["kind"] == LowRankUpdate.kind:
        updates = tuple(
            WeightUpdate(
                layer,
                role,
                take(f"{prefix}.{layer}.{role}.left", np.float32),
                take(f"{prefix}.{layer}.{role}.right", np.float32),
            )
            for layer, role in entry["weights"]
        )
        return LowRankUpdate(entry["method"], updates, report=entry["report"])
    raise PlanError(f"The plan holds an intervention of unknown kind {entry['kind']!r}.", "Use a newer Bakeout.")
