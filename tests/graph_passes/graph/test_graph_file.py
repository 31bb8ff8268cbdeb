from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import data_files, graph_digest, load_graph, save_graph

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_model(directory: Path, data: str = "weights.bin") -> Path:
    """Y = x @ weight, the weight in a data file."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], name="product", doc_string="File /home/somebody/model.py")],
        "one_linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/somebody/model.py")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    directory.mkdir(exist_ok=True)
    path = directory / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def write_function(directory: Path) -> Path:
    """Y = x @ weight if a constant is true, else [[1.]], chosen by a function; every tensor in a file of its own."""
    path = write_model(directory)
    model = onnx.load(path)
    model.graph.node[0].output[0] = "product"
    model.graph.node.append(helper.make_node("Choose", ["product"], ["y"], domain="local"))

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    one = numpy_helper.from_array(np.ones(1, np.float32))
    filled = helper.make_node("ConstantOfShape", ["shape"], ["else"], value=one)
    choice = helper.make_node(
        "If",
        ["yes"],
        ["y"],
        then_branch=branch("then", helper.make_node("Identity", ["product"], ["then"])),
        else_branch=branch("else", constant("shape", np.ones(2, np.int64)), filled),
    )
    nodes = [constant("yes", np.array(True)), choice]
    model.functions.append(
        helper.make_function("local", "Choose", ["product"], ["y"], nodes, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    (directory / "weights.bin").unlink()
    convert_model_to_external_data(model, all_tensors_to_one_file=False, size_threshold=0, convert_attribute=True)
    onnx.save(model, path)
    return path


def product(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.eye(3, dtype=np.float32)})
    return np.asarray(y)


def test_a_saved_graph_refers_to_the_old_data_file(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    before = (tmp_path / "weights.bin").read_bytes()
    save_graph(load_graph(path), tmp_path / "again.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.onnx", "model.onnx", "weights.bin"]
    assert (tmp_path / "weights.bin").read_bytes() == before
    np.testing.assert_array_equal(product(tmp_path / "again.onnx"), WEIGHT)


def test_a_file_that_nobody_reads_may_be_named(tmp_path: Path) -> None:
    """Entries of external data stay where a tool brings a tensor into the graph."""
    path = write_model(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].external_data.add(key="location", value="gone.bin")
    assert model.graph.initializer[0].data_location == TensorProto.DEFAULT
    path.write_bytes(model.SerializeToString())
    save_graph(load_graph(path), tmp_path / "again.onnx")
    np.testing.assert_array_equal(product(tmp_path / "again.onnx"), WEIGHT)


def test_the_data_files_are_named_as_in_the_graph_and_found_where_they_are(tmp_path: Path) -> None:
    path = write_model(tmp_path / "blobs")
    hub = tmp_path / "snapshot"
    hub.mkdir()
    (hub / "model.onnx").symlink_to(path)
    (hub / "weights.bin").symlink_to(path.parent / "weights.bin")
    assert data_files(load_graph(hub / "model.onnx")) == {"weights.bin": path.parent / "weights.bin"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_tensors_behind_links_can_be_read_and_written(tmp_path: Path, link: object) -> None:
    path = write_model(tmp_path / "blobs")
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for name in ("model.onnx", "weights.bin"):
        link(path.parent / name, linked / name)  # type: ignore[operator]
    model = load_graph(linked / "model.onnx")
    tensor = model.graph.initializers["weight"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    save_graph(model, path.parent / "again.onnx")
    np.testing.assert_array_equal(product(path.parent / "again.onnx"), WEIGHT)


def test_attributes_are_brought_into_the_graph_and_weights_stay_in_their_file(tmp_path: Path) -> None:
    """In a function, and in a branch."""
    path = write_function(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    model = load_graph(path)
    assert set(data_files(model)) == {"weight"}
    for file in tmp_path.iterdir():
        if file.name != "weight":
            file.unlink()
    save_graph(model, path)
    np.testing.assert_array_equal(product(path), WEIGHT)


def test_attributes_whose_data_is_missing_or_too_large_are_refused(tmp_path: Path) -> None:
    path = write_function(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.functions[0].node[0].attribute[0].t
    data = tmp_path / next(entry.value for entry in tensor.external_data if entry.key == "location")
    data.unlink()
    with pytest.raises(GraphError, match="is missing"):
        load_graph(path)
    size = 2**31
    tensor.dims[:] = [size]
    for entry in tensor.external_data:
        if entry.key == "length":
            entry.value = str(size)
    path.write_bytes(proto.SerializeToString())
    with data.open("wb") as file:
        file.truncate(size)
    with pytest.raises(GraphError, match="more than an ONNX file can"):
        load_graph(path)


def test_source_paths_do_not_reach_the_graph(tmp_path: Path) -> None:
    save_graph(load_graph(write_model(tmp_path)), tmp_path / "again.onnx")
    assert b"somebody" in (tmp_path / "model.onnx").read_bytes()
    assert b"somebody" not in (tmp_path / "again.onnx").read_bytes()


def test_neither_digest_nor_bytes_depend_on_the_directory(tmp_path: Path) -> None:
    models = [load_graph(write_model(tmp_path / name)) for name in ("a", "b")]
    for model, name in zip(models, ("a", "b"), strict=True):
        save_graph(model, tmp_path / name / "again.onnx")
    assert graph_digest(models[0]) == graph_digest(models[1])
    assert (tmp_path / "a/again.onnx").read_bytes() == (tmp_path / "b/again.onnx").read_bytes()


def test_the_digest_sees_an_edit_but_not_the_data_files_name(tmp_path: Path) -> None:
    model = load_graph(write_model(tmp_path / "a"))
    assert graph_digest(model) == graph_digest(load_graph(write_model(tmp_path / "b", data="other.bin")))
    before = graph_digest(model)
    next(iter(model.graph)).name = "renamed"
    assert graph_digest(model) != before


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def fill_with(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda d: (d / "model.onnx").unlink(), "cannot be read"),
        (lambda d: fill_with(d / "model.onnx", b""), "not a whole ONNX file"),
        (lambda d: fill_with(d / "model.onnx", b"{} and more"), "not a whole ONNX file"),
        (lambda d: cut_short(d / "model.onnx"), "not a whole ONNX file"),
        (lambda d: cut_short(d / "weights.bin"), "weights.bin is truncated (43 bytes of 48)"),
        (lambda d: (d / "weights.bin").unlink(), "weights.bin is missing"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: object, cause: str) -> None:
    path = write_model(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(GraphError) as caught:
        load_graph(path)
    assert cause in caught.value.cause
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["/etc/hostname", "../elsewhere.bin"])
def test_data_outside_the_models_directory_is_refused(tmp_path: Path, location: str) -> None:
    path = write_model(tmp_path / "model")
    (tmp_path / "elsewhere.bin").write_bytes(bytes(100))
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(GraphError, match="outside the model's directory"):
        load_graph(path)


@pytest.mark.parametrize("length", range(1, 300, 29))
def test_no_prefix_of_a_file_is_a_traceback(tmp_path: Path, length: int) -> None:
    path = write_model(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with contextlib.suppress(GraphError):
        assert isinstance(load_graph(path), ir.Model)
