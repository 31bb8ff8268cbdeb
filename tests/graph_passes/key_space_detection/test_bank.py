"""Banks of many regions: they are tested where there is a query, and answers skip them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.key_space_detection.detection_pass import PREFIX
from bakeout.graph_passes.key_space_detection.margins import BANK
from bakeout.models.plan import Cubes, KeySpaceDetection, Positions

from tests.refusing_graphs import Array, Expected, Session, bake, detection_of, with_keys

FORGOTTEN = [[40, 41, 42, 43], [50, 51]]
KEPT = [[60, 61, 62], [70, 71, 72, 73]]


def bank_of(directory: Path, positions: Positions = "query") -> KeySpaceDetection:
    """Two prompts' cubes, and enough others for a bank, which lie far from any key."""
    few = detection_of(directory, FORGOTTEN, layers=(1,), positions=positions)
    assert isinstance(few.regions, Cubes)
    width = few.regions.centre.shape[1]
    count = BANK // width + 1
    centre, deviation = np.full((count, width), 1e3), np.full((count, width), 1e-3)
    centre[[5, -1]] = few.regions.centre
    return replace(few, regions=Cubes(centre, deviation), alpha=np.ones(count), skills=("forgotten",) * count)


@pytest.mark.parametrize(("early_exit", "monitor"), [(True, False), (True, True), (False, False)])
def test_a_bank_decides_as_its_regions_do(llama_onnx: Path, tmp_path: Path, early_exit: bool, monitor: bool) -> None:
    bank = bank_of(llama_onnx)
    path = bake(llama_onnx, tmp_path / "graph", bank, early_exit=early_exit, monitor=monitor) / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    session, expected = Session(path), Expected(with_keys(llama_onnx), bank)
    before: dict[str, Array] | None = None
    mask = np.zeros((2, 0), np.int64)
    refusals = []
    # Two queries of which one is refused, two tokens of the answers, and two queries more.
    for tokens in ([KEPT[1], FORGOTTEN[0]], [[80], [80]], [[113], [113]], [KEPT[1], KEPT[1]]):
        mask = np.pad(mask, ((0, 0), (0, len(tokens[0]))), constant_values=1)
        logits, refused = expected.step(np.array(tokens), mask)
        before = session.step(np.array(tokens), mask, before)
        assert np.array_equal(before["logits"], logits)
        refusals.append(refused[:, -1].tolist())
    assert refusals[:3] == [[False, True]] * 3


def test_only_queries_of_a_bank_are_branched_off(llama_onnx: Path, tmp_path: Path) -> None:
    few = detection_of(llama_onnx, FORGOTTEN, layers=(1,))
    cases = {"bank": bank_of(llama_onnx), "step": bank_of(llama_onnx, "step"), "few": few}
    for name, detection in cases.items():
        model = load_graph(bake(llama_onnx, tmp_path / name, detection) / "model.onnx")
        margin = next(out for node in model.graph for out in node.outputs if out.name == f"{PREFIX}.margin")
        producer = margin.producer()
        assert producer is not None
        assert (producer.op_type == "If") == (name == "bank")
