"""Adapters of a slotted artifact in onnxruntime-genai: one model, another policy for each generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bakeout.export.adapters.onnx_adapter import export_onnx_adapter
from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest

from tests.genai_builder import build
from tests.residual_plans import residual_addition
from tests.tiny_models import tiny_checkpoint
from tests.weight_plans import plan_of

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

PROMPT = [40, 41, 42, 43, 60]
NEW = 12


def test_genai_swaps_policies(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint", hidden=64)
    build(checkpoint, tmp_path / "graph", "fp32")
    model = load_model(checkpoint)
    plans = [plan_of(model, weights_digest(checkpoint), residual_addition(model, seed=seed)) for seed in range(3)]
    apart = []
    for number, plan in enumerate(plans):
        baked = bake(tmp_path / "graph", plan, tmp_path / f"baked{number}").directory
        apart.append(_said(genai.Model(str(baked))))
    assert len({tuple(tokens) for tokens in apart}) == 3
    slotted = bake(tmp_path / "graph", plans[0], tmp_path / "slotted", BakeOptions(adapter_slots=True)).directory
    served = genai.Model(str(slotted))
    adapters = genai.Adapters(served)
    for number, plan in enumerate(plans):
        path = tmp_path / f"{number}.onnx_adapter"
        export_onnx_adapter(plan, slotted, path)
        adapters.load(str(path), str(number))
    assert _said(served) == apart[0]
    for number in (1, 2, 0, 1):
        assert _said(served, adapters, str(number)) == apart[number]


def _said(model: Any, adapters: Any = None, name: str = "") -> list[int]:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=64, past_present_share_buffer=False)
    generator = genai.Generator(model, parameters)
    if adapters is not None:
        generator.set_active_adapter(adapters, name)
    generator.append_tokens(np.array([PROMPT], dtype=np.int32))
    said: list[int] = []
    while len(said) < NEW and not generator.is_done():
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    return said
