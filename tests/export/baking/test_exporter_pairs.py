"""What ``transformers.exporters`` itself writes, which transformers 5 has: two graphs, baked from one plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bakeout.export.baking.bake import bake
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.network.families import identity

from tests.baked_parity import compare, plan_of
from tests.exported_graphs import PROMPTS, holds, intervention_of
from tests.tiny_models import tiny_checkpoint

exporters = pytest.importorskip("transformers.exporters")


@pytest.mark.parametrize(
    "several", [pytest.param(True, id="tokens"), pytest.param(False, marks=pytest.mark.slow, id="token")]
)
def test_both_graphs_answer_as_the_reference(tmp_path: Path, several: bool) -> None:
    """``several`` tokens in a run of the second graph, or one as is that exporter's default."""
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint", layers=2)
    model = load_model(checkpoint)
    ids = torch.randint(3, 200, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = exporters.OnnxConfig(dynamic=True)
    exported = exporters.OnnxExporter().export_for_generation(model, inputs, config, multi_token_decode=several)
    exported.save_pretrained(tmp_path / "pair")

    plan = plan_of(model, [intervention_of(model, "middle")], PROMPTS)
    plan = replace(plan, model=identity(model, weights_digest(checkpoint)))
    baked = bake(tmp_path / "pair", plan, tmp_path / "baked").directory
    assert {path.name for path in baked.glob("*.onnx*")} == {"prefill.onnx", "decode.onnx", "decode.onnx.data"}
    assert [check.name for check in verify(baked, base=checkpoint, prompts=PROMPTS) if check.ok] == [
        *("files", "graph", "canary", "parity")
    ]
    parity = compare(model, plan, Runner(tmp_path / "pair"), Runner(baked), PROMPTS)
    assert holds(parity, "middle")
