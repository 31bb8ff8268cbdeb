"""Plans of fitted methods, kept in the output directory: a row that needs one does not fit it again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import Bench

from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.models.plan import Intervention, Plan
from bakeout.models.plan.plan_file import load_plan, save_plan
from bakeout.models.reference.canary import measure_canary
from bakeout.models.reference.weight_edits import edited_weights


def kept_plan(bench: Bench, name: str, fit: Callable[[], Sequence[Intervention]]) -> Plan:
    """The plan ``name``; fitted, timed and kept where there is none yet."""
    path = plan_file(bench, name)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        wall, processor = time.monotonic(), time.process_time()
        interventions = tuple(fit())
        seconds = {"wall": time.monotonic() - wall, "processor": time.process_time() - processor}
        prompts = [record.prompt_ids for record in bench.records("facts", "test", 4)]
        with edited_weights(bench.model, interventions):
            canary = measure_canary(bench.model, interventions, prompts)
        save_plan(Plan(bench.identity, interventions, canary, {"data": {}, "versions": {}}), path)
        bench.save(f"seconds to fit {name}", seconds)
        print(f"{name}: fitted in {seconds}", flush=True)
    return load_plan(path)


def plan_file(bench: Bench, name: str) -> Path:
    """Where the plan ``name`` is kept."""
    return bench.output / "plans" / f"{name.replace(', ', '-').replace(' ', '-').replace('+', '-')}.safetensors"


def baked(bench: Bench, plan: Plan) -> Path:
    """The plan's ONNX artifact, in the place of the one before."""
    directory = bench.output / "artifact"
    shutil.rmtree(directory, ignore_errors=True)
    bake(bench.base, plan, directory, BakeOptions())
    return directory
