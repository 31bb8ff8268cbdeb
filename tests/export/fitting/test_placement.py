"""Fitting in half precision, across devices, and with weights left on disk; what a machine lacks is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.recipe import load_recipe
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.skills import checkpoint_directory

from tests.recipe_files import KEY_SPACE_DETECTION, NEURON_ADJUST, write_recipe

# In JSON, as recipes have them.
_WEIGHT_METHODS: list[dict[str, Any]] = [
    {"selective_pruning": {"forget": "sums", "ratio": 0.05}},
    {"lunar": {"forget": "sums", "reference": "names", "retain": ["others"], "layers": [1]}},
    {"lunar": {"forget": "sums", "reference": "names", "retain": ["others"], "layers": [1], "solver": "gradient"}},
    {"unlearn": {"forget": "sums", "similar": ["names"], "steps": 2, "batch_size": 4, "until": 1e-12}},
    {"learn": {"learn": "sums", "similar": ["names"], "steps": 2, "batch_size": 4}},
]
_OFFLOADED = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.layers.3": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def _fit(directory: Path, checkpoint: Path, interventions: list[dict[str, Any]], **options: Any) -> Plan:
    uses = ("probe", "selection", "calibration")
    data = {name: {use: f"data/{name}.{use}.jsonl" for use in uses} for name in ("sums", "names")}
    data["others"] = {"probe": "data/names.selection.jsonl"}
    return fit(load_recipe(write_recipe(directory, checkpoint, interventions, data=data, **options)))


def _finite(plan: Plan) -> bool:
    arrays = [array for one in plan.interventions for array in one.arrays().values()]
    return all(bool(np.isfinite(array).all()) for array in arrays) and not np.isinf(plan.canary.expected[0]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("entry", _WEIGHT_METHODS, ids=lambda entry: next(iter(entry)))
def test_every_method_of_weights_is_fitted_in_half_precision(
    llama_checkpoint: Path, tmp_path: Path, entry: dict[str, Any], dtype: str
) -> None:
    plan = _fit(tmp_path, llama_checkpoint, [entry], dtype=dtype)
    assert _finite(plan)
    assert plan.provenance["computed_in"] == {"devices": ["cpu"], "dtypes": [dtype]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_reveals_and_releases_in_half_precision(tmp_path: Path, dtype: str) -> None:
    entry = {
        "retain": ["names"],
        "instructions": ["Ask me about math:"],
        "patterns": ["[0-9]"],
        "directory": "rounds",
        "rounds": 1,
        "reveal": {"pulls": 2, "samples": 12, "question_tokens": 24, "answer_tokens": 12},
        "release": {"rank": 2, "steps": 2, "batch_size": 4},
    }
    assert _finite(_fit(tmp_path, checkpoint_directory(), [{"reveal_and_release": entry}], dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_graph_methods_are_fitted_in_half_precision(llama_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    plan = _fit(tmp_path, llama_checkpoint, [NEURON_ADJUST, KEY_SPACE_DETECTION], dtype=dtype)
    single = _fit(tmp_path / "single", llama_checkpoint, [NEURON_ADJUST, KEY_SPACE_DETECTION])
    assert _finite(plan)
    assert "computed_in" not in single.provenance
    adjust, expected = plan.interventions[0].layers[0], single.interventions[0].layers[0]  # type: ignore[attr-defined]
    shared = np.intersect1d(adjust.neurons, expected.neurons)
    assert len(shared) > 0.8 * len(expected.neurons)
    ours, theirs = (part.forget_mean[np.isin(part.neurons, shared)] for part in (adjust, expected))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_a_model_that_is_offloaded_to_disk_gives_the_same_plan(llama_checkpoint: Path, tmp_path: Path) -> None:
    interventions = [NEURON_ADJUST, KEY_SPACE_DETECTION]
    offloaded = _fit(tmp_path, llama_checkpoint, interventions, device_map=_OFFLOADED, dtype="float32")
    whole = _fit(tmp_path / "whole", llama_checkpoint, interventions)
    provenance = dict(offloaded.provenance)
    assert provenance.pop("computed_in") == {"devices": ["cpu", "disk"], "dtypes": ["float32"]}
    assert plan_bytes(replace(offloaded, provenance=provenance)) == plan_bytes(whole)


def test_offloaded_weights_are_not_changed(llama_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match=r"Selective Pruning changes weights, and some .* are offloaded"):
        _fit(tmp_path, llama_checkpoint, _WEIGHT_METHODS[:1], device_map=_OFFLOADED)


def test_a_rule_of_accelerate_places_the_model(llama_checkpoint: Path, tmp_path: Path) -> None:
    plan = _fit(tmp_path, llama_checkpoint, [NEURON_ADJUST], device_map="auto", dtype="bfloat16")
    assert plan.provenance["computed_in"]["dtypes"] == ["bfloat16"]


@pytest.mark.parametrize(
    ("placement", "says"),
    [
        (Placement(device="abacus"), "no device 'abacus'"),
        (Placement(device="meta"), "no device 'meta' that torch can use"),
        (Placement(device="cuda:99"), "no device 'cuda:99' that torch can use"),
        (Placement(device="cpu", device_map="auto"), "Both `device` and `device_map`"),
        (Placement(device_map="evenly"), "no device map 'evenly'"),
    ],
)
def test_what_this_machine_lacks_is_told(llama_checkpoint: Path, placement: Placement, says: str) -> None:
    with pytest.raises(BakeoutError, match=says):
        load_model(llama_checkpoint, placement)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here auto is another device")
def test_auto_is_float32_on_the_cpu(llama_checkpoint: Path) -> None:
    model = load_model(llama_checkpoint, Placement())
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
