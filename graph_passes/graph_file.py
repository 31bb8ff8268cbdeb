"""ONNX files as graphs: loaded and saved without their weights, which stay in their data file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from bakeout.graph_passes.errors import GraphError


def load_graph(path: Path) -> ir.Model:
    """Read a graph; the data files it refers to are checked for presence and size, never read.

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
    ClearMetadataAndDocStringPass()(model)
    return model


def save_graph(model: ir.Model, path: Path) -> None:
    """Write the graph alone: tensors that lie in a data file are written as references to it, by its old name."""
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def data_files(model: ir.Model) -> dict[str, Path]:
    """The data files that the graph refers to: name as written in the graph to path, symbolic links resolved."""
    return {
        str(tensor.location): Path(tensor.path).resolve()
        for tensor in sorted(external_tensors(model), key=lambda tensor: str(tensor.location))
    }


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All tensors whose bytes lie in a data file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
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


def _require_data(model: ir.Model, path: Path) -> None:
    needed: dict[str, int] = {}
    for tensor in external_tensors(model):
        location = str(tensor.location)
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        needed[location] = max(end, needed.get(location, 0))
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
