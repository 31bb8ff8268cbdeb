"""Banks of many regions: they are tested where there is a query, and of every token where a rough test leaves doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.key_space_detection import margins
from bakeout.graph_passes.key_space_detection.detection_pass import PREFIX
from bakeout.graph_passes.key_space_detection.regions.region_test import BankTest
from bakeout.graph_passes.key_space_detection.regions.registry import region_test
from bakeout.models.plan import Cubes, KeySpaceDetection, Positions, Regions
from bakeout.models.plan.kinds.regions.linear import HalfSpaces

from tests.refusing_graphs import Array, Expected, Session, bake, detection_of, with_keys

FORGOTTEN = [[40, 41, 42, 43], [50, 51]]
KEPT = [[60, 61, 62], [70, 71, 72, 73]]
# Of a bank's cubes, those that are around the forgotten prompts' keys.
FEW, MANY = slice(3, 5), slice(0, 40)
WIDTH = 160


@pytest.fixture(autouse=True)
def small_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margins, "BANK", 2**12)


def bank_of(directory: Path, positions: Positions = "query", near: slice = FEW) -> KeySpaceDetection:
    """Two prompts' cubes, and others for a bank, which lie far from any key."""
    few = detection_of(directory, FORGOTTEN, layers=(1,), positions=positions)
    assert isinstance(few.regions, Cubes)
    width = few.regions.centre.shape[1]
    count = 2**12 // width + 1
    centre, deviation = np.full((count, width), 1e3), np.full((count, width), 1e-3)
    centre[near] = np.resize(few.regions.centre, (len(centre[near]), width))
    return replace(few, regions=Cubes(centre, deviation), alpha=np.ones(count), skills=("forgotten",) * count)


@pytest.mark.parametrize("near", [FEW, MANY], ids=["few near", "many near"])
@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize(("early_exit", "monitor"), [(True, False), (True, True), (False, False)])
def test_a_bank_decides_as_its_regions_do(
    llama_onnx: Path, tmp_path: Path, positions: Positions, near: slice, early_exit: bool, monitor: bool
) -> None:
    bank = bank_of(llama_onnx, positions, near)
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
    few = replace(detection_of(llama_onnx, FORGOTTEN, layers=(1,)))
    cases = {"bank": bank_of(llama_onnx), "step": bank_of(llama_onnx, "step"), "few": few}
    for name, detection in cases.items():
        model = load_graph(bake(llama_onnx, tmp_path / name, detection) / "model.onnx")
        margin = next(out for node in model.graph.all_nodes() for out in node.outputs if out.name == f"{PREFIX}.margin")
        producer = margin.producer()
        assert producer is not None
        assert (producer.op_type == "If") == (name == "bank")


def _rough_and_exact(regions: Regions, keys: Array, path: Path) -> tuple[Array, Array, Array]:
    """A bank's lower bounds, its margins, and those of every pair of a token and a region, one after the other."""
    value = ir.Value(name="keys", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH]))
    graph = ir.Graph([value], [], nodes=[], name="bank", opset_imports={"": 18})
    build = GraphBuilder(graph, "test")
    test = region_test(build, regions)
    assert isinstance(test, BankTest)
    count = len(regions.margins(keys[:1])[0])
    token, region = np.divmod(np.arange(len(keys) * count), count)
    rows = build("Gather", value, build.constant(token, "token"))
    outputs = [
        test.at_least(build, value),
        test.of_many(build, value),
        test.of_pairs(build, rows, build.constant(region, "region")),
    ]
    for output in outputs:
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, None])
    graph.extend(build.nodes)
    graph.outputs.extend(outputs)
    onnx.save(ir.to_proto(ir.Model(graph, ir_version=10)), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    least, exact, pairs = session.run(None, {"keys": keys.astype(np.float32)})
    return least, exact, pairs.reshape(exact.shape)


@pytest.mark.parametrize("far", [0.0, 1e4], ids=["about 0", "far from 0"])
@pytest.mark.parametrize("shape", [Cubes, HalfSpaces])
def test_the_rough_test_of_a_bank_rules_out_nothing_that_is_inside(
    shape: type[Cubes | HalfSpaces], far: float, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(70, WIDTH))
    keys = far + generator.normal(size=(9, WIDTH))
    keys[0] = -far
    # Half-spaces whose border runs through a key, as nearly as float64 can say.
    border = -(drawn * keys[np.arange(70) % 9]).sum(axis=1)
    regions: Regions = (
        Cubes(far + drawn, generator.uniform(0.1, 3, drawn.shape)) if shape is Cubes else HalfSpaces(drawn, border)
    )
    least, exact, pairs = _rough_and_exact(regions, keys, tmp_path / "bank.onnx")
    assert (least <= exact).all() and (least <= pairs).all()
    np.testing.assert_allclose(pairs, exact, rtol=1e-5, atol=1e-5 * (1 + far))
    # And it rules out what is far enough outside.
    if isinstance(regions, HalfSpaces):
        magnitude = np.linalg.norm(keys, axis=1)[:, None] * np.linalg.norm(drawn, axis=1) + np.abs(border)
        assert (least[exact > 0.01 * magnitude] > 0).all()
    assert (least > 1e-3).any()
