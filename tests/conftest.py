"""What many tests share: tiny checkpoints and their ONNX exports, made once for all of pytest's workers."""

from __future__ import annotations

import os

# Before any library reads them: no network, and one thread a worker (the suite runs several workers).
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from bakeout.models.plan import Plan

from tests.once import made_once
from tests.tiny_models import tiny_checkpoint

CheckpointOf = Callable[[str], Path]

# pytest has imported torch already, for a warning that it ignores. A fork of a process with threads may wait for ever.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Examples are the same on every run, and a busy machine is no failure.
hypothesis.settings.register_profile(
    "bakeout",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("bakeout")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of the tests' own."""
    os.environ["BAKEOUT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """``checkpoint_of(family)``: the directory of a tiny fp32 checkpoint, made on the first request."""
    return lambda family: made_once(tmp_path_factory, family, lambda directory: tiny_checkpoint(family, directory))


@pytest.fixture(scope="session")
def onnx_of(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """``onnx_of(family)``: the directory of the fp32 export with KV cache of ``checkpoint_of(family)``."""
    return lambda family: made_once(
        tmp_path_factory, f"{family}-onnx", lambda directory: _export(checkpoint_of(family), directory)
    )


@pytest.fixture(scope="session")
def llama_checkpoint(checkpoint_of: CheckpointOf) -> Path:
    """The directory of a tiny random Llama: 4 layers, hidden size 32, FFL width 96, fp32."""
    return checkpoint_of("llama")


@pytest.fixture(scope="session")
def llama_onnx(onnx_of: CheckpointOf) -> Path:
    """The directory of ``llama_checkpoint``'s ONNX export, ``model.onnx`` and the tokenizer in it."""
    return onnx_of("llama")


@pytest.fixture(scope="session")
def llama_export(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of our own export of ``llama_checkpoint``: its weights lie in ``model.onnx.data``."""
    from bakeout.export.exporting.onnx_export import export_checkpoint

    return made_once(tmp_path_factory, "llama-export", lambda directory: export_checkpoint(llama_checkpoint, directory))


@pytest.fixture(scope="session")
def tiny_plan(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Neuron Adjust, then Key Space Detection, fitted on ``llama_checkpoint`` (``recipe_files``)."""
    from bakeout.export.fitting.fit import fit
    from bakeout.export.recipes.recipe import load_recipe

    from tests.recipe_files import write_recipe

    return fit(load_recipe(write_recipe(tmp_path_factory.mktemp("recipe"), llama_checkpoint)))


def _export(checkpoint: Path, directory: Path) -> None:
    from bakeout.export.exporting import optimum_exporter
    from bakeout.export.exporting.onnx_export import export_checkpoint

    if optimum_exporter.unavailable("llama"):
        export_checkpoint(checkpoint, directory)
        return
    from optimum.exporters.onnx import main_export

    main_export(str(checkpoint), output=directory, task="text-generation-with-past", do_validation=False)
