"""A policy: an adapter in a directory with its plan and a manifest, signed, recorded and certified as artifacts are.

The manifest's entry ``adapter`` says whose adapter it is and, for ONNX Runtime's, over which artifact: by the digest of
what was baked into that (``artifacts.manifest.content_digest``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.export.adapters.onnx_adapter import export_onnx_adapter
from bakeout.export.adapters.peft_adapter import export_peft_adapter
from bakeout.export.artifacts.additions import require_unchanged
from bakeout.export.artifacts.file_names import ADAPTER, ADDED, PLAN
from bakeout.export.artifacts.manifest import adapter_of, content_digest, write_manifest
from bakeout.graph_passes.adapter_slots import Slot, fill_slots
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import new_directory, scratch_directory
from bakeout.models.plan import Plan
from bakeout.models.plan.hiding import is_hidden
from bakeout.models.plan.plan_file import load_plan, plan_bytes
from bakeout.models.sources.peft_adapter import CONFIG, WEIGHTS

_PACKAGES = ("bakeout", "numpy", "safetensors")


def export_policy(plan: Plan, output: Path, *, artifact: Path | None = None, base: str | None = None) -> int:
    """Write the directory ``output``: the adapter, its plan and the manifest; gives the number of tensors.

    Over the ``artifact`` for ONNX Runtime, without for peft (``base`` as of ``export_peft_adapter``). Raises as
    ``export_onnx_adapter`` and ``export_peft_adapter``, and where the artifact's files are not those of its manifest.
    """
    over = {} if artifact is None else {"artifact": content_digest(require_unchanged(artifact, ADDED))}
    if artifact is not None and is_hidden(load_plan(artifact / PLAN)) and not is_hidden(plan):
        raise BakeoutError(
            "The artifact hides what is forgotten, and the policy's plan would tell it.",
            "Hide it as well (`bakeout export-adapter --hide SALT`).",
        )
    with new_directory(output) as directory:
        if artifact is None:
            exported = export_peft_adapter(plan, directory / "peft", base=base)
            for path in (directory / "peft").iterdir():
                path.rename(directory / path.name)
            (directory / "peft").rmdir()
        else:
            exported = dict.fromkeys(export_onnx_adapter(plan, artifact, directory / ADAPTER), 1)
        (directory / PLAN).write_bytes(plan_bytes(plan))
        entries = {
            "adapter": {"form": "peft" if artifact is None else "onnx", **over},
            "base": asdict(plan.model),
            "data": plan.provenance.get("data", {}),
            "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(),
            "receipts": [],
            "versions": {
                "baked_with": {package: version(package) for package in _PACKAGES},
                "fitted_with": plan.provenance.get("versions", {}),
            },
        }
        write_manifest(directory, entries)
    return len(exported)


def require_over(manifest: Mapping[str, Any], artifact: Path | None) -> Path | None:
    """The artifact that a policy for ONNX Runtime is run over; None for peft's.

    Raises ``BakeoutError`` unless ``artifact`` is the one that the policy's manifest names.
    """
    told = adapter_of(manifest)
    if told is None or told["form"] == "peft":
        if artifact is not None:
            raise BakeoutError("`over` is for policies of ONNX Runtime.", "Leave it out.")
        return None
    if artifact is None:
        raise BakeoutError("The policy is an adapter over an artifact.", "Give that as `over`.")
    if content_digest(require_unchanged(artifact, ADDED)) != told.get("artifact"):
        raise BakeoutError(f"The policy is an adapter over another artifact than {artifact}.", "Give that one.")
    return artifact


def check_policy(directory: Path, manifest: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a policy's adapter is the one that its plan becomes, and what can be said of that."""
    told = adapter_of(manifest)
    assert told is not None, "policies alone are checked"
    others = manifest["files"].keys() - ADDED - {PLAN, *((CONFIG, WEIGHTS) if told["form"] == "peft" else (ADAPTER,))}
    if others:
        return False, f"a policy is an adapter and its plan, and the manifest names {min(others)}"
    try:
        plan = load_plan(directory / PLAN)
        is_same = (_is_peft_of if told["form"] == "peft" else _is_onnx_of)(directory, plan)
    except BakeoutError as error:
        return False, str(error)
    return is_same, f"the adapter is {'what' if is_same else 'other than what'} its plan becomes"


def _is_onnx_of(directory: Path, plan: Plan) -> bool:
    import onnx_ir as ir

    from bakeout.export.running.adapter_file import adapter_constants

    values = adapter_constants(directory / ADAPTER)
    constants = {name: value.numpy() for name, value in values.items()}
    slots = {name: Slot(ir.DataType.from_numpy(array.dtype), array.shape) for name, array in constants.items()}
    expected = fill_slots(slots, plan)
    return all(np.array_equal(array, expected[name]) for name, array in constants.items())


def _is_peft_of(directory: Path, plan: Plan) -> bool:
    base = read_json(directory / CONFIG).get("base_model_name_or_path")
    with scratch_directory() as scratch:
        export_peft_adapter(plan, scratch / "peft", base=base)
        files = [(directory / name, scratch / "peft" / name) for name in (CONFIG, WEIGHTS)]
        return all(own.is_file() and own.read_bytes() == expected.read_bytes() for own, expected in files)
