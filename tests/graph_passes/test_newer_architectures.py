"""Architectures that ``torch.onnx.export`` exports: both kinds of intervention against the PyTorch reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.running.genai_config import GENAI_CONFIG
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.network.families import identity

from tests.baked_parity import plan_of
from tests.exported_graphs import PROMPTS, compared, holds, intervention_of
from tests.tiny_models import NEWER_FAMILIES, tiny_checkpoint

# What `make test-transformers5` runs; `make test` runs `tests/export/exporting/test_exporters.py`.
QUICK = ("qwen3_5_text",)


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in NEWER_FAMILIES]
)
def test_it_says_what_the_reference_says(tmp_path: Path, family: str) -> None:
    """Token for token, and another text than the unbaked model's on at least half of the prompts."""
    checkpoint = tiny_checkpoint(family, tmp_path / "checkpoint", layers=2)
    (tmp_path / "onnx").mkdir()
    export_checkpoint(checkpoint, tmp_path / "onnx", exporter="dynamo")
    for kind in ("neuron_adjust", "middle"):
        parity = compared(tmp_path / "onnx", load_model(checkpoint), kind)
        assert holds(parity, kind), (kind, parity)


def test_a_hybrid_whose_first_layer_has_no_cache_is_baked_without_a_configuration_for_genai(tmp_path: Path) -> None:
    pytest.importorskip("transformers.exporters", reason="lfm2 is exported beside transformers 5")
    checkpoint = tiny_checkpoint("lfm2", tmp_path / "checkpoint", layers=2)
    model = load_model(checkpoint)
    plan = plan_of(model, [intervention_of(model, "neuron_adjust")], PROMPTS)
    plan = replace(plan, model=identity(model, weights_digest(checkpoint)))
    artifact = bake(checkpoint, plan, tmp_path / "baked").directory
    assert not (artifact / GENAI_CONFIG).exists()
