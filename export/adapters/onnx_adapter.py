"""A plan as an adapter of ONNX Runtime for an artifact with slots: policies that are swapped, not rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.export.artifacts.file_names import PLAN
from bakeout.export.artifacts.model_source import find_graph
from bakeout.graph_passes.adapter_slots import fill_slots, slots_in
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import require_new, scratch_directory, write_file
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import load_plan

_VERSION = 1


def export_onnx_adapter(plan: Plan, artifact: Path, output: Path) -> Mapping[str, tuple[int, ...]]:
    """Write ``output``, an ``.onnx_adapter`` for the graph in ``artifact``; gives the shapes of its constants by name.

    Active, it makes of the artifact the one that ``plan`` is baked into. Raises ``BakeoutError`` where the artifact has
    no slots, or its plan differs from ``plan`` in anything but the constants of graph edits: the model, the kinds,
    their layers and settings, the refusal, weight edits.
    """
    require_new(output)
    if not (artifact / PLAN).is_file():
        raise BakeoutError(f"{artifact} is no artifact.", "Name what `bake --adapter-slots` wrote.")
    _require_alike(plan, load_plan(artifact / PLAN))
    slots = slots_in(load_graph(find_graph(artifact)))
    if not slots:
        raise BakeoutError(f"The graph in {artifact} has no adapter slots.", "Bake it with `adapter_slots`.")
    constants = fill_slots(slots, plan)
    import onnxruntime

    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    adapter.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in constants.items()})
    with scratch_directory() as scratch:
        adapter.export_adapter(str(scratch / output.name))
        write_file(output, (scratch / output.name).read_bytes())
    return {name: array.shape for name, array in constants.items()}


def _require_alike(plan: Plan, baked: Plan) -> None:
    """Raise ``BakeoutError`` unless the plans differ in constants alone."""
    if plan.model != baked.model:
        raise BakeoutError("The plan was fitted on another model than the artifact's.", "Fit it on that model.")
    ours, theirs = ([intervention.structure() for intervention in each.interventions] for each in (plan, baked))
    if len(ours) != len(theirs):
        raise BakeoutError(
            f"The plan has {len(ours)} interventions, and the artifact's {len(theirs)}.", "Export a plan like that one."
        )
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        for key in sorted(own.keys() | other.keys()):
            if not _equal(own.get(key), other.get(key)):
                raise BakeoutError(
                    f"Intervention {number} of the plan differs from the artifact's in its {key}, which is no constant "
                    "of the graph.",
                    "Bake the plan into an artifact of its own.",
                )


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)
