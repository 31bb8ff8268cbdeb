"""The test of every shape, node for node under the runtimes, against the plan's own margins in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from bakeout.graph_passes.graph.graph_builder import GraphBuilder
from bakeout.graph_passes.key_space_detection.margins import joined
from bakeout.graph_passes.key_space_detection.regions.region_test import TOGETHER
from bakeout.graph_passes.key_space_detection.regions.registry import region_test
from bakeout.models.plan import Cubes, Floats, Regions
from bakeout.models.plan.kinds.regions.linear import HalfSpaces

from tests.fitted_regions import SHAPES, fitted_regions
from tests.graph_passes.small_graphs import evaluate

WIDTH = 192


def _fitted(name: str, generator: np.random.Generator, mean: Floats) -> Regions:
    def keys(count: int, place: float) -> Floats:
        return mean + generator.normal(place, 1, (count, WIDTH))

    return fitted_regions(name, [keys(60, 0), keys(50, 1)], keys(80, 3))


def _written(path: Path, regions: Regions, *, many: bool) -> Path:
    """A graph from keys to margins and, with alpha 2, whether each key is inside, as the check decides it."""
    keys = ir.Value(name="keys", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH]))
    graph = ir.Graph([keys], [], nodes=[], name="margins", opset_imports={"": 18})
    build = GraphBuilder(graph, "test")
    test = region_test(build, regions)
    margins = test.of_many(build, keys) if many else test.of_few(build, keys)
    count, _ = regions.shape
    distance = build("Sub", margins, build.constant(np.full(count, 2, np.float32), "alpha"))
    zero = build.constant(np.array(0, np.float32), "zero")
    inside = build("LessOrEqual", build("ReduceMin", distance, [-1]), zero, name="inside")
    margins.type, margins.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", count])
    inside.type, inside.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape(["n", 1])
    graph.extend(build.nodes)
    graph.outputs.extend([margins, inside])
    onnx.save(ir.to_proto(ir.Model(graph, ir_version=10)), path)
    return path


@pytest.mark.parametrize("far", [False, True], ids=["about 0", "far from 0"])
@pytest.mark.parametrize("many", [False, True], ids=["a token a row", "all tokens"])
@pytest.mark.parametrize("name", SHAPES)
def test_margins_are_the_plans(name: str, many: bool, far: bool, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    generator = np.random.default_rng(0)
    # Some dimensions of real models are hundreds of deviations away from 0.
    mean = np.where(generator.random(WIDTH) < 0.05, 300.0, 0.0) if far else np.zeros(WIDTH)
    regions = _fitted(name, generator, mean)
    keys = (mean + generator.normal(0.5, 1.5, (40, WIDTH))).astype(np.float32)
    path = _written(tmp_path / "margins.onnx", regions, many=many)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = regions.margins(keys.astype(np.float64))
    outputs: list[Sequence[Any]] = [session.run(None, {"keys": keys}), list(compiled([keys]).values())]
    for margins, inside in outputs:
        np.testing.assert_allclose(margins, expected, rtol=1e-4, atol=1e-4)
        decisive = np.abs(expected - 2).min(axis=1) > 1e-3
        assert (inside[decisive, 0] == (expected[decisive] <= 2).any(axis=1)).all()


@pytest.mark.parametrize("shape", [Cubes, HalfSpaces])
def test_a_bank_is_tested_in_parts(shape: type[Cubes | HalfSpaces], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(3 * TOGETHER + 5, WIDTH))
    spread = generator.uniform(0.5, 2, drawn.shape)
    regions: Regions = Cubes(drawn, spread) if shape is Cubes else HalfSpaces(drawn, spread[:, 0])
    keys = generator.normal(size=(3, WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        _written(tmp_path / "margins.onnx", regions, many=False), providers=["CPUExecutionProvider"]
    )
    margins, _ = session.run(None, {"keys": keys})
    np.testing.assert_allclose(margins, regions.margins(keys.astype(np.float64)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 6, 7, 12, 40])
def test_keys_of_many_layers_are_joined_by_no_more_than_a_device_binds(count: int) -> None:
    """A stage of WebGPU binds eight tensors, the result among them."""
    keys = {f"key{index}": np.full((2, 3), index, np.float16) for index in range(count)}
    bound: list[int] = []

    def build(build: GraphBuilder, **values: ir.Value) -> list[ir.Value]:
        result = joined(build, list(values.values()))
        bound.extend(len(node.inputs) for node in build.nodes if node.op_type == "Concat")
        return [result]

    (result,) = evaluate(build, keys)
    np.testing.assert_array_equal(result, np.concatenate(list(keys.values()), axis=1))
    assert result.dtype == np.float32
    assert max(bound, default=0) < 8
