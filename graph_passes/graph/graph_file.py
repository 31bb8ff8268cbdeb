"""ONNX files as graphs: loaded and saved without their weights, which stay in their data file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from bakeout.graph_passes.errors import GraphError


class DataTensor(ir.ExternalTensor):
    """A tensor in a data file, by the file's real path: onnx_ir itself reads no file that is linked, but model hubs
    and ``cp -l`` link them. ``name_in_graph`` is the file's name as the graph has it; ``awaits_writing``: the tensor
    was edited, and the file does not hold it so.
    """

    name_in_graph: str
    awaits_writing = False


def load_graph(path: Path) -> ir.Model:
    """Read a graph; the data files it refers to are checked for presence and size, not read.

    Metadata and doc strings are dropped: torch's exporter writes absolute source paths into them, which would make
    the artifact depend on the directory it was exported in.

    Raises ``GraphError`` for a file that is missing, truncated or not ONNX, and for external data that is missing,
    too short, or outside the model's directory.
    """
    try:
        model = ir.load(path)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise GraphError(f"{path}: not a whole ONNX file ({reason}).", "Copy or export it again.") from None
    if len(model.graph) == 0:
        raise GraphError(f"{path}: not a whole ONNX file (it holds no node).", "Copy or export it again.")
    _require_data(model, path)
    _resolve_data(model, path)
    ClearMetadataAndDocStringPass()(model)
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write the graph alone: tensors that lie in a data file are written as references to it, by its old name.

    Raises ``ValueError`` where one of them was edited since, and the file would hold it as it was.
    """
    if any(tensor.awaits_writing for tensor in data_tensors(model)):
        raise ValueError("tensors in the data file were edited: write them into a copy, and the graph beside it")
    path.write_bytes(graph_bytes(model))


def graph_bytes(model: ir.Model) -> bytes:
    """What ``save_graph`` writes. The same graph gives the same bytes."""
    proto = ir.serde.serialize_model(model)
    names = {str(tensor.location): tensor.name_in_graph for tensor in data_tensors(model)}
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = names[entry.value]
    return bytes(proto.SerializeToString(deterministic=True))


def data_files(model: ir.Model) -> dict[str, Path]:
    """The data files of a loaded graph: name as written in the graph to real path, symbolic links resolved."""
    found = {tensor.name_in_graph: Path(tensor.location) for tensor in data_tensors(model)}
    return dict(sorted(found.items()))


def name_data_files(model: ir.Model, names: Mapping[str, str]) -> None:
    """Let a loaded graph, once it is written, refer to its data files by other names: old name to new."""
    for tensor in data_tensors(model):
        tensor.name_in_graph = names.get(tensor.name_in_graph, tensor.name_in_graph)


def data_tensors(model: ir.Model) -> Iterator[DataTensor]:
    """The tensors of a loaded graph that lie in data files."""
    for value in _initialisers(model):
        if isinstance(value.const_value, DataTensor):
            yield value.const_value


def graph_digest(model: ir.Model) -> str:
    """SHA-256 of the serialised graph. Of tensors in data files only name, type and shape count, not the bytes."""
    proto = ir.serde.serialize_model(model)
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                del tensor.external_data[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _initialisers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _require_data(model: ir.Model, path: Path) -> None:
    needed: dict[str, int] = {}
    for value in _initialisers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
            needed[str(tensor.location)] = max(end, needed.get(str(tensor.location), 0))
    for location, size in sorted(needed.items()):
        relative = PurePosixPath(location)
        if relative.is_absolute() or ".." in relative.parts:
            raise GraphError(
                f"{path}: its data file {location!r} lies outside the model's directory.",
                "Keep the data file beside the model.",
            )
        data = path.parent / location
        if not data.is_file():
            raise GraphError(f"{path}: its data file {location} is missing.", "Copy it beside the model.")
        found = data.stat().st_size
        if found < size:
            raise GraphError(
                f"{path}: its data file {location} is truncated ({found} bytes of {size}).", "Copy it again."
            )


def _resolve_data(model: ir.Model, path: Path) -> None:
    for value in _initialisers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            resolved = DataTensor(
                (path.parent / tensor.location).resolve(),
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
            )
            resolved.name_in_graph = str(tensor.location)
            value.const_value = resolved
