"""Graphs of the opsets that exporters wrote for years: converted where onnx can, and refused where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import helper

from bakeout.export.baking.bake import bake
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan

from tests.older_opsets import as_opset

PROMPT = [5, 6, 7, 8]


@pytest.fixture(
    scope="module", params=[11, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (12, 13, 14)), 17]
)
def older(request: pytest.FixtureRequest, llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from optimum.exporters.onnx import main_export

    directory = tmp_path_factory.mktemp("older")
    main_export(
        str(llama_checkpoint),
        output=directory,
        task="text-generation-with-past",
        do_validation=False,
        # Today's exporters write no older one.
        opset=max(request.param, 14),
    )
    if request.param < 14:
        onnx.save(as_opset(onnx.load(directory / "model.onnx"), request.param), directory / "model.onnx")
    assert onnx.load(directory / "model.onnx").opset_import[0].version == request.param
    return directory


@pytest.mark.parametrize("apart", [False, True])
def test_an_older_graph_is_converted_and_the_receipts_say_so(
    older: Path, llama_onnx: Path, tiny_plan: Plan, tmp_path: Path, apart: bool
) -> None:
    model = tmp_path / "model"
    shutil.copytree(older, model)
    opset = onnx.load(model / "model.onnx").opset_import[0].version
    if apart:
        content = onnx.load(model / "model.onnx")
        onnx.save(content, model / "model.onnx", save_as_external_data=True, location="data", size_threshold=64)
    baked = bake(model, tiny_plan, tmp_path / "baked")
    assert {receipt.detail["converted_from_opset"] for receipt in baked.receipts} == {opset}
    expected = bake(llama_onnx, tiny_plan, tmp_path / "expected")
    assert not any("converted_from_opset" in receipt.detail for receipt in expected.receipts)
    prompts = [PROMPT, [9, 10, 11], [60, 61, 62, 63, 64], *tiny_plan.canary.input_ids.tolist()]
    assert Runner(baked.directory).generate(prompts, 8) == Runner(expected.directory).generate(prompts, 8)
    # Without a plan, too, what was rewritten computes what the newest graph does.
    assert Runner(older).generate(prompts, 8) == Runner(llama_onnx).generate(prompts, 8)


def test_what_onnx_cannot_convert_is_refused_with_the_reason(llama_onnx: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama_onnx, model)
    content = onnx.load(model / "model.onnx")
    content.graph.node.insert(0, helper.make_node("Upsample", ["x", "y"], ["z"]))
    content.opset_import[0].version = 8
    onnx.save(content, model / "model.onnx")
    with pytest.raises(BakeoutError, match="is of opset 8, which onnx cannot convert"):
        bake(model, tiny_plan, tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
