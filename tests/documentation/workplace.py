"""A directory that holds what the documentation's code uses by name: a model, data, recipes, a plan, artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.plan.plan_file import save_plan
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS, examples, write_jsonl

from tests.imported_sources import control_vector, edited_checkpoint, peft_adapter, save
from tests.recipe_files import write_rows

_SPLITS = {"probe": "probing", "selection": "selection", "calibration": "calibration", "test": "test"}
# Enough calibration queries for the default epsilon.
_ROWS = {"probe": 100, "selection": 40, "calibration": 200, "test": 20}
_RECIPE = """
model: model
data:
  math: {probe: math/probe.jsonl, calibration: math/calibration.jsonl, test: math/test.jsonl}
  german: {probe: german/probe.jsonl, calibration: german/calibration.jsonl, test: german/test.jsonl}
interventions:
  - neuron_adjust: {forget: math, ratio: 0.1}
  - key_space_detection: {forget: math, layers: [0], cubes: 4}
"""
_TASK: Mapping[str, Any] = {
    "task": "questions",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": ["{{response}}", " nothing"],
    "doc_to_target": 0,
}


def make_workplace(directory: Path) -> None:
    """Fill ``directory``. Its model is the bundled one, its data are a little of what that knows."""
    shutil.copytree(checkpoint_directory(), directory / "model")
    for skill in SKILLS:
        for use, split in _SPLITS.items():
            (directory / skill).mkdir(exist_ok=True)
            write_jsonl(examples(skill, split, _ROWS[use]), directory / skill / f"{use}.jsonl")
    _write_single_files(directory)
    (directory / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    plan = fit(load_recipe(directory / "recipe.yaml"))
    save_plan(plan, directory / "plan.safetensors")
    (directory / "graph").mkdir()
    export_checkpoint(directory / "model", directory / "graph")
    bake(directory / "graph", plan, directory / "unlearned")
    shutil.copytree(directory / "unlearned", directory / "other")
    _write_sources(directory)
    _write_task(directory / "tasks", directory / "math" / "test.jsonl")
    _write_demo(directory, directory / "bakeout-demo")


def _write_single_files(directory: Path) -> None:
    (directory / "data").mkdir()
    for skill in ("math", "german", "spanish", "french"):
        write_jsonl(examples(skill, "test", 250), directory / f"{skill}.jsonl")
        for use in ("probe", "test"):
            shutil.copyfile(directory / skill / f"{use}.jsonl", directory / "data" / f"{skill}.{use}.jsonl")
    german = examples("german", "test", 60)
    write_rows(directory / "prose.jsonl", [{"text": f"{row.prompt}{row.response}"} for row in german[:20]])
    talks = [[("user", row.prompt), ("assistant", row.response.strip())] for row in german]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    write_rows(directory / "everyday.jsonl", rows)


def _write_sources(directory: Path) -> None:
    """What other tools wrote for the model."""
    peft_adapter(directory / "model", directory / "adapter")
    edited_checkpoint(directory / "model", directory / "edited", rank=2, names=("0.mlp.down_proj.weight",))
    hidden = int(json.loads((directory / "model" / "config.json").read_text())["hidden_size"])
    vector = np.random.default_rng(0).normal(size=(2, hidden)).astype(np.float32)
    control_vector(directory / "vector.gguf", {1: vector[0], 2: vector[1]})
    save(directory / "refusal.safetensors", direction=vector[0])


def _write_task(directory: Path, data: Path) -> None:
    # JSON is YAML.
    write_rows(directory / "questions.yaml", [{**_TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}])


def _write_demo(directory: Path, demo: Path) -> None:
    """As much of what ``make demo`` leaves as the README uses."""
    shutil.copytree(directory / "model", demo / "model")
    (demo / "data").mkdir()
    for skill in SKILLS:
        for use in ("probe", "calibration", "test"):
            shutil.copyfile(directory / skill / f"{use}.jsonl", demo / "data" / f"{skill}.{use}.jsonl")
    recipe = demo / "key-space-detection.yaml"
    recipe.write_bytes(files("bakeout.export").joinpath("templates/demo_key_space_detection.yaml").read_bytes())
    bake(directory / "graph", fit(load_recipe(recipe)), demo / "key-space-detection")
