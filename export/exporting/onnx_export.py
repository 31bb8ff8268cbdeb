"""A Hugging Face checkpoint exported to ONNX through optimum: graph, weights beside it, configuration, tokenizer."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from bakeout.export.artifacts.file_names import DATA, GRAPH
from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.exporting.tied_weights import tie_weights
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError
from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.disk_room import require_space
from bakeout.models.files.writing import disk_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DType = Literal["fp32", "fp16"]

_TASK = "text-generation-with-past"
_BYTES = {"fp32": 4, "fp16": 2}
_MASKED = -30000.0
# What an exporter that does not know a model fails with, or ONNX Runtime, with which optimum tries what it wrote. A
# full disk is an OSError, and not among them.
_EXPORT_FAILS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def export_checkpoint(checkpoint: Path, directory: Path, dtype: DType = "fp32") -> Path:
    """Export ``checkpoint`` into ``directory`` and return the path of ``model.onnx``.

    The weights lie in ``model.onnx.data``; the checkpoint's configuration and tokenizer files are copied beside. The
    graph has a KV cache, and holds no path and no doc string: the same checkpoint gives the same bytes anywhere.
    ``fp16`` is a graph that computes in float16 wherever the model does.

    Raises ``BakeoutError`` for a checkpoint that cannot be loaded or that optimum cannot export, and for a full disk.
    """
    import torch

    model = load_model(checkpoint, torch.float16 if dtype == "fp16" else torch.float32)
    if dtype == "fp16":
        # The default attention's mask is float32 in a trace, and would make everything behind it float32.
        model.set_attn_implementation("eager")
    # Once as torch writes it, tied weights apart, once more with the weights in one file.
    require_space(directory, 2 * _BYTES[dtype] * sum(weight.numel() for weight in model.state_dict().values()))
    with disk_errors(directory), tempfile.TemporaryDirectory(prefix=".export.", dir=directory) as scratch:
        exported = Path(scratch)
        _export(model, exported, checkpoint, dtype)
        graph = load_graph(exported / GRAPH)
        tie_weights(graph.graph)
        _bound_mask(graph)
        ir.save(graph, directory / GRAPH, external_data=DATA)
        # The checkpoint's own files go before those that optimum writes anew.
        companions = {path.name: path for path in (*companion_files(exported), *companion_files(checkpoint))}
        for name, path in companions.items():
            copy_by_kernel(path, directory / name)
    return directory / GRAPH


def _bound_mask(graph: ir.Model) -> None:
    """Mask with -30000 instead of float16's lowest number, which a negative score makes infinite.

    A row of padding whose scores all are has no softmax, and its NaN would spread from the cache to every other row.
    """
    for node in graph.graph.all_nodes():
        value = node.attributes.get("value")
        if node.op_type != "Constant" or value is None:
            continue
        tensor = value.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT16 and tensor.size == 1 and tensor.numpy() == np.finfo(np.float16).min:
            lower = np.full(tensor.shape.numpy(), _MASKED, dtype=np.float16)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(lower))


def _export(model: PreTrainedModel, directory: Path, checkpoint: Path, dtype: DType) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    try:
        with _quiet():
            onnx_export_from_model(model, output=directory, task=_TASK, do_validation=False, no_post_process=True)
    except _EXPORT_FAILS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BakeoutError(
            f"{checkpoint} cannot be exported to ONNX in {dtype} ({reason}).",
            ("Export in fp32, or bake" if dtype == "fp16" else "Use an architecture that optimum exports, or bake")
            + " an ONNX graph made elsewhere.",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters print and warn of from the user. What goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)
