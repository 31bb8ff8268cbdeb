"""ONNX files as graphs: loaded and saved without their weights, which stay in their data file.

Initialisers alone refer to data files in a loaded graph. Exporters put tensors of attributes there too, such as a
Constant's; they are few and small, and are read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.opset import OLDEST_OPSET, converted
from bakeout.models.files.reading import open_regular
from bakeout.models.files.writing import write_file
from bakeout.models.sources.tensor_file import read_tensors

# What a loaded graph was converted from, in its ``meta``, and in the receipts of its edits.
CONVERTED_FROM = "converted_from_opset"
# What protobuf writes into one file.
_LARGEST_FILE = 2**31 - 1
# Operators that the standard lacks and ONNX Runtime has in its domain; the genai builder writes them.
_OF_ONNX_RUNTIME = frozenset(("SimplifiedLayerNormalization",))

# What onnx_ir raises for a graph whose parts do not fit together.
_CONTRADICTIONS = (
    ir.serde.SerdeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class DataTensor(ir.ExternalTensor):
    """A tensor in a data file, by the file's real path: onnx_ir itself reads no file that is linked, but model hubs
    and ``cp -l`` link them. ``name_in_graph`` is the file's name as the graph has it; ``awaits_writing``: the tensor
    was edited, and the file does not hold it so.
    """

    name_in_graph: str
    awaits_writing = False


def load_graph(path: Path) -> ir.Model:
    """Read a graph; the data files it refers to are checked for presence and size. Weights are not read.

    Metadata and doc strings are dropped: torch's exporter writes absolute source paths into them, which would make
    the artifact depend on the directory it was exported in. A graph of an opset before 18 is converted.

    Raises ``GraphError`` for a file that is missing, truncated or not ONNX, for external data that is missing, too
    short, or outside the model's directory, and for attributes that the graph's own file cannot hold.
    """
    try:
        with open_regular(path):
            model = ir.load(path)
        if 0 < (opset := model.opset_imports.get("", 0)) < OLDEST_OPSET:
            model = _in_newer_opset(path, opset)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except (DecodeError, *_CONTRADICTIONS) as error:
        raise GraphError(f"{path}: not a whole ONNX file ({_reason(error)}).", "Copy or export it again.") from None
    if len(model.graph) == 0:
        raise GraphError(f"{path}: not a whole ONNX file (it holds no node).", "Copy or export it again.")
    _require_data(model, path)
    _resolve_data(model, path.parent)
    _read_attributes(model, path)
    ClearMetadataAndDocStringPass()(model)
    _read_numbers(model)
    return model


def _read_numbers(model: ir.Model) -> None:
    """Take sizes of inputs and outputs that stand there as names, such as "8", for what they are."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and any(_is_number(size) for size in value.shape):
            value.shape = ir.Shape([int(str(size)) if _is_number(size) else size for size in value.shape])


def _is_number(size: int | ir.SymbolicDim) -> bool:
    return not isinstance(size, int) and re.fullmatch("[0-9]{1,9}", str(size.value), re.ASCII) is not None


@contextmanager
def sound_graph() -> Iterator[None]:
    """Raise as ``GraphError`` what is raised in this block, or function, for a graph that contradicts itself.

    ONNX asks a great deal of a graph, and what reads or edits one relies on it: values without a type, a name twice,
    nodes in a cycle or shapes that do not fit end in as many ways as there are places. The cause is kept.
    """
    try:
        yield
    except _CONTRADICTIONS as error:
        raise GraphError(f"The graph contradicts itself ({_reason(error)}).", "Copy or export it again.") from error


def _in_newer_opset(path: Path, opset: int) -> ir.Model:
    """The graph in ``path``, of an old ``opset``, converted; ``meta`` remembers which it was."""
    newer = converted(onnx.load(path, load_external_data=False))
    model = ir.serde.deserialize_model(newer)
    ir.external_data.set_base_dir(model.graph, path.parent)
    model.meta[CONVERTED_FROM] = opset
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write the graph alone: tensors that lie in a data file are written as references to it, by its old name.

    Raises ``ValueError`` where one of them was edited since, and the file would hold it as it was, and
    ``BakeoutError`` where ``path`` exists.
    """
    if any(tensor.awaits_writing for tensor in data_tensors(model)):
        raise ValueError("tensors in the data file were edited: write them into a copy, and the graph beside it")
    write_file(path, graph_bytes(model))


def graph_bytes(model: ir.Model) -> bytes:
    """What ``save_graph`` writes. The same graph gives the same bytes."""
    with sound_graph():
        proto = ir.serde.serialize_model(model)
    names = {str(tensor.location): tensor.name_in_graph for tensor in data_tensors(model)}
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            # A tensor whose data the graph holds can name a file that nobody reads.
            is_in_file = tensor.data_location == onnx.TensorProto.EXTERNAL
            for entry in tensor.external_data:
                if is_in_file and entry.key == "location":
                    entry.value = names[entry.value]
    return bytes(proto.SerializeToString(deterministic=True))


def data_files(model: ir.Model) -> dict[str, Path]:
    """The data files of a loaded graph: name as written in the graph to real path, symbolic links resolved."""
    files = {tensor.name_in_graph: Path(tensor.location) for tensor in data_tensors(model)}
    return dict(sorted(files.items()))


def name_data_files(model: ir.Model, names: Mapping[str, str]) -> None:
    """Let a loaded graph, once it is written, refer to its data files by other names: old name to new."""
    for tensor in data_tensors(model):
        tensor.name_in_graph = names.get(tensor.name_in_graph, tensor.name_in_graph)


def name_data_files_as_stored(model: ir.Model) -> Path | None:
    """Let a loaded graph refer to its data files by their own names, and give the folder that they lie in.

    The hub's cache links files to others elsewhere, and ONNX Runtime does not follow a link out of the folder it is
    given. None, and nothing is renamed, where there are no data files, or in several folders.
    """
    files = data_files(model)
    folders = {path.parent for path in files.values()}
    if len(folders) != 1:
        return None
    name_data_files(model, {name: path.name for name, path in files.items()})
    return folders.pop()


def data_tensors(model: ir.Model) -> Iterator[DataTensor]:
    """The tensors of a loaded graph that lie in data files."""
    for value in _initialisers(model):
        if isinstance(value.const_value, DataTensor):
            yield value.const_value


def tensor_values(tensor: ir.TensorProtocol, data: Path | None = None) -> NDArray[Any]:
    """A tensor's values in memory of their own; those of one in a data file from ``data``, if a copy of it is given.

    Not through onnx_ir, which maps the whole data file and keeps it.
    """
    if not isinstance(tensor, DataTensor):
        return tensor.numpy().copy()
    values: NDArray[Any] = np.fromfile(
        data or Path(tensor.location), dtype=tensor.dtype.numpy(), count=tensor.size, offset=tensor.offset or 0
    )
    return values.reshape(tensor.shape.numpy())


def graph_digest(model: ir.Model) -> str:
    """SHA-256 of the serialised graph. Of tensors in data files only name, type and shape count, not the bytes."""
    with sound_graph():
        proto = ir.serde.serialize_model(model)
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                del tensor.external_data[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def without_data(path: Path) -> onnx.ModelProto:
    """The graph in ``path`` as it is, but initialisers in data files are empty: what the ONNX checker can be given.

    It opens data files, and takes the links of a hub's cache for attacks; ``load_graph`` checks these files. Operators
    that ONNX Runtime has in the standard's domain are named as its own. Raises as ``onnx.load`` does.
    """
    proto = onnx.load(path, load_external_data=False)
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                tensor.dims[:] = [0]
        for node in graph.node:
            if node.op_type in _OF_ONNX_RUNTIME and not node.domain:
                node.domain = "com.microsoft"
    return proto


def _reason(error: Exception) -> str:
    """The root of onnx_ir's errors, which show the whole graph before they come to it."""
    while isinstance(error, ir.serde.SerdeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    try:
        text = str(error)
    except _CONTRADICTIONS:
        # It shows the graph, which cannot be shown.
        text = ""
    return " ".join(text.split())[:200] or type(error).__name__


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _initialisers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _external_initialisers(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    for value in _initialisers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value, value.const_value


def _external_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.ExternalTensor]]:
    """The attributes that lie in data files, with their nodes: of the graph, its subgraphs and its functions."""
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for owner in owners:
        for node in owner.all_nodes():
            for attribute in node.attributes.values():
                if isinstance(attribute.value, ir.ExternalTensor):
                    yield node, attribute.name, attribute.value


def _require_data(model: ir.Model, path: Path) -> None:
    needed: dict[str, list[tuple[str, int, int]]] = {}
    tensors = [tensor for _, tensor in _external_initialisers(model)]
    tensors += [tensor for _, _, tensor in _external_attributes(model)]
    for tensor in tensors:
        start = tensor.offset or 0
        end = start + (tensor.length if tensor.length is not None else tensor.nbytes)
        needed.setdefault(str(tensor.location), []).append((tensor.name or "a tensor", start, end))
    for location, ranges in sorted(needed.items()):
        size = max(end for _, _, end in ranges)
        relative = PurePosixPath(location)
        if relative.is_absolute() or ".." in relative.parts:
            raise GraphError(
                f"{path}: its data file {location!r} lies outside the model's directory.",
                "Keep the data file beside the model.",
            )
        data = path.parent / location
        if not data.is_file():
            raise GraphError(f"{path}: its data file {location} is missing.", "Copy it beside the model.")
        try:
            with open_regular(data) as file:
                actual = file.seek(0, os.SEEK_END)
        except OSError as error:
            raise GraphError(
                f"{path}: its data file {location} cannot be read ({error.strerror}).", "Check its permissions."
            ) from None
        if actual < size:
            raise GraphError(
                f"{path}: its data file {location} is truncated ({actual} bytes of {size}).", "Copy it again."
            )
        if data.suffix == ".safetensors":
            _require_tensors(data, ranges)


def _require_tensors(path: Path, ranges: Iterable[tuple[str, int, int]]) -> None:
    """Raise ``GraphError`` where one of ``ranges`` (name, first byte, end) is not the place of a tensor in ``path``.

    onnx_ir, mobius and onnx-safetensors write such data files, whose header lies before the first tensor. Else a weight
    would be read out of the header or of two tensors, and an edit would write there.
    """
    places = {(tensor.start, tensor.end) for tensor in read_tensors(path).values()}
    for name, start, end in ranges:
        if start < end and (start, end) not in places:
            raise GraphError(
                f"{path}: the graph has {name} in its bytes {start} to {end}, where no tensor of the file lies.",
                "Export the graph again, with this file.",
            )


def _resolve_data(model: ir.Model, directory: Path) -> None:
    for value, tensor in _external_initialisers(model):
        value.const_value = _resolved(tensor, directory)


def _resolved(tensor: ir.ExternalTensor, directory: Path) -> DataTensor:
    resolved = DataTensor(
        (directory / tensor.location).resolve(),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
    )
    resolved.name_in_graph = str(tensor.location)
    return resolved


def _read_attributes(model: ir.Model, path: Path) -> None:
    attributes = list(_external_attributes(model))
    size = sum(tensor.nbytes for _, _, tensor in attributes)
    if size > _LARGEST_FILE:
        raise GraphError(
            f"{path}: its nodes' attributes hold {size} bytes of tensors, more than an ONNX file can.",
            "Export it with its weights as initialisers.",
        )
    for node, name, tensor in attributes:
        (read,) = ir.external_data.convert_tensors_from_external([_resolved(tensor, path.parent)])
        node.attributes[name] = ir.AttrTensor(name, read)
