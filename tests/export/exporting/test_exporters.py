"""The choice of an exporter, and the graph that ``torch.onnx.export`` gives of what optimum does not know."""

from __future__ import annotations

import json
import os
import shutil
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


def test_generation_settings_that_transformers_does_not_save_stay_as_they_are(checkpoint: Path, tmp_path: Path) -> None:
    loose = shutil.copytree(checkpoint, tmp_path / "loose")
    settings = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}
    (loose / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "exported").mkdir()
    export_checkpoint(loose, tmp_path / "exported", exporter="dynamo")
    assert json.loads((tmp_path / "exported" / "generation_config.json").read_text()) == settings


@pytest.mark.slow
def test_what_torch_onnx_cannot_trace_is_traced_by_torch_export(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("mpt", tmp_path / "checkpoint", layers=2)
    (tmp_path / "exported").mkdir()
    export_checkpoint(checkpoint, tmp_path / "exported", exporter="dynamo")
    assert holds(compared(tmp_path / "exported", load_model(checkpoint), "last"), "last")
