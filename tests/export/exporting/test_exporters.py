"""The choice of an exporter, and the graph that ``torch.onnx.export`` gives of what optimum does not know."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from bakeout.export.exporting import optimum_exporter
from bakeout.export.exporting.exporters import choose_exporter
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError

from tests.exported_graphs import compared, holds
from tests.tiny_models import tiny_checkpoint

has_optimum = pytest.mark.skipif(optimum_exporter.unavailable("llama") is not None, reason="optimum-onnx does not run")


@has_optimum
def test_auto_takes_optimum_where_it_knows_the_architecture() -> None:
    assert [choose_exporter("auto", family)[0] for family in ("llama", "ernie4_5")] == ["optimum", "dynamo"]
    assert choose_exporter("dynamo", "llama")[0] == "dynamo"
    with pytest.raises(BakeoutError, match="optimum cannot export ernie4_5: optimum does not know"):
        choose_exporter("optimum", "ernie4_5")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("ernie4_5", tmp_path_factory.mktemp("ernie"), layers=2)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_checkpoint(checkpoint, directory)
    return directory


def test_its_graph_has_the_names_of_optimum_and_no_path(checkpoint: Path, exported: Path) -> None:
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    caches = [f"{layer}.{half}" for layer in (0, 1) for half in ("key", "value")]
    assert [value.name for value in model.graph.input] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{cache}" for cache in caches),
    ]
    assert [value.name for value in model.graph.output] == ["logits", *(f"present.{cache}" for cache in caches)]
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    content = (exported / "model.onnx").read_bytes()
    for path in (checkpoint, exported, Path(onnx.__file__).parents[1]):
        assert os.fsencode(path) not in content


def test_it_says_what_the_reference_says(checkpoint: Path, exported: Path) -> None:
    assert holds(compared(exported, load_model(checkpoint), "last"), "last")
