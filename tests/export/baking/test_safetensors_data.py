"""Graphs whose weights lie in safetensors files, as onnx_ir, mobius and onnx-safetensors write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.artifacts.model_source import local_form
from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan

from tests.tiny_models import random_prompts
from tests.weight_plans import low_rank_update, plan_of

ROWS = random_prompts(6, seed=5)
DATA = "model.safetensors"


@pytest.fixture
def source(llama_export: Path, tmp_path: Path) -> Path:
    """A directory with configuration, ``model.onnx`` and ``model.safetensors``, which looks like a checkpoint."""
    return _converted(llama_export, tmp_path / "source")


def _converted(export: Path, directory: Path, largest: int | None = None) -> Path:
    shutil.copytree(export, directory, ignore=shutil.ignore_patterns("*.onnx*"))
    ir.save_safetensors(ir.load(export / "model.onnx"), directory / "model.onnx", max_shard_size_bytes=largest)
    return directory


def _checks(directory: Path, base: Path) -> dict[str, bool]:
    return {check.name: check.ok for check in verify(directory, base=base)}


def test_the_file_is_kept_byte_for_byte(source: Path, llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    assert local_form(source) == "graph"
    whole = bake(llama_export, tiny_plan, tmp_path / "whole").directory
    baked = bake(source, tiny_plan, tmp_path / "baked").directory
    digest = hash_file(source / DATA)
    shutil.rmtree(source)
    assert hash_file(baked / DATA) == digest == read_manifest(baked)["files"][DATA]["sha256"]
    assert Runner(baked).generate(ROWS, 8) == Runner(whole).generate(ROWS, 8)
    assert [check.name for check in verify(baked) if check.ok] == ["files", "graph", "canary"]


def test_weights_in_the_file_are_edited_and_all_else_of_it_stays(
    source: Path, llama_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(llama_checkpoint)
    plan = plan_of(model, weights_digest(llama_checkpoint), low_rank_update(model))
    baked = bake(source, plan, tmp_path / "baked")
    assert _checks(baked.directory, llama_checkpoint) == dict.fromkeys(("files", "graph", "canary", "parity"), True)
    before, after = load_file(source / DATA), load_file(baked.directory / DATA)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {receipt.tensor for receipt in baked.receipts}
    assert before.keys() == after.keys()


def test_several_files(llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    source = _converted(llama_export, tmp_path / "source", largest=200_000)
    names = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(names) > 1
    assert local_form(source) == "graph"
    baked = bake(source, tiny_plan, tmp_path / "baked").directory
    assert sorted(path.name for path in baked.glob("model-*.safetensors")) == names
    whole = bake(llama_export, tiny_plan, tmp_path / "whole").directory
    assert Runner(baked).generate(ROWS, 8) == Runner(whole).generate(ROWS, 8)


@pytest.mark.slow
def test_what_is_quantised_has_a_file_of_its_own(source: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    quantised = bake(source, tiny_plan, tmp_path / "int4", BakeOptions(quantize="int4")).directory
    assert not (quantised / DATA).exists()
    assert [check.name for check in verify(quantised) if check.ok] == ["files", "graph", "canary"]


def test_a_checkpoint_is_one_whatever_graph_lies_in_it(
    llama_checkpoint: Path, llama_export: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(llama_checkpoint, both)
    shutil.copy(llama_export / "model.onnx", both)
    shutil.copy(llama_export / "model.onnx.data", both)
    assert local_form(both) == "checkpoint"


def _with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _shift(directory: Path, by: int) -> None:
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    (offset,) = (entry for entry in tensor.external_data if entry.key == "offset")
    offset.value = str(int(offset.value) + by)
    onnx.save(model, directory / "model.onnx")


def _into_the_header(directory: Path) -> None:
    _shift(directory, -64)


def _beyond_the_end(directory: Path) -> None:
    _shift(directory, (directory / DATA).stat().st_size)


def _longer_header(directory: Path) -> None:
    # All tensors lie eight bytes further on than the graph has them.
    _with_header(directory / DATA, lambda header: header.update(__metadata__={"a": "bc"}))


def _beyond_what_there_is(directory: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max((entry for entry in header.values()), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"][1] += 4096

    _with_header(directory / DATA, change)


def _endless_header(directory: Path) -> None:
    with (directory / DATA).open("r+b") as file:
        file.write((1 << 62).to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_into_the_header, "where no tensor of the file lies"),
        (_beyond_the_end, "is truncated"),
        (_longer_header, "where no tensor of the file lies"),
        (_beyond_what_there_is, "is not a whole safetensors file"),
        (_endless_header, "is not a whole safetensors file"),
    ],
)
def test_files_that_are_not_what_the_graph_says(
    source: Path, tiny_plan: Plan, tmp_path: Path, spoil: Callable[[Path], None], cause: str
) -> None:
    spoil(source)
    with pytest.raises(BakeoutError, match=cause):
        load_graph(source / "model.onnx")
    with pytest.raises(BakeoutError, match=cause):
        bake(source, tiny_plan, tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
