"""Architectures that ``torch.onnx.export`` exports: both kinds of intervention against the PyTorch reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model

from tests.exported_graphs import compared, holds
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
