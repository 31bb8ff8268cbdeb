"""A plan fitted on the tiny Llama, and what baking needs, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from bakeout.export.fit import fit
from bakeout.export.onnx_export import export_checkpoint
from bakeout.export.recipe import load_recipe
from bakeout.models.plan import Plan

from tests.export.recipes import write_recipe


@pytest.fixture(scope="session")
def tiny_plan(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Neuron Adjust, then Key Space Detection, fitted on ``llama_checkpoint``."""
    return fit(load_recipe(write_recipe(tmp_path_factory.mktemp("recipe"), llama_checkpoint)))


@pytest.fixture(scope="session")
def llama_export(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of our own export of ``llama_checkpoint``: its weights lie in ``model.onnx.data``."""
    directory = tmp_path_factory.mktemp("llama-export")
    export_checkpoint(llama_checkpoint, directory)
    return directory
