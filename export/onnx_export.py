"""A Hugging Face checkpoint exported to ONNX through optimum: graph, weights beside it, configuration, tokenizer."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bakeout.export.artifact import DATA, GRAPH, copy_by_kernel, require_space
from bakeout.export.onnx_directory import companion_files
from bakeout.models.checkpoint import load_model
from bakeout.models.errors import BakeoutError

DType = Literal["fp32", "fp16"]

_TASK = "text-generation-with-past"
_BYTES = {"fp32": 4, "fp16": 2}
# What an exporter that does not know a model fails with; a full disk is an OSError, and not among them.
_EXPORT_FAILS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def export_checkpoint(checkpoint: Path, directory: Path, dtype: DType = "fp32") -> Path:
    """Export ``checkpoint`` into ``directory`` and return the path of ``model.onnx``.

    The weights lie in ``model.onnx.data``; the checkpoint's configuration and tokenizer files are copied beside. The
    graph has a KV cache, and holds no path and no doc string: the same checkpoint gives the same bytes anywhere.
    ``fp16`` is a graph that computes in float16 wherever the model does.

    Raises ``BakeoutError`` for a checkpoint that cannot be loaded or that optimum cannot export.
    """
    import onnx_ir as ir
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    model = load_model(checkpoint, torch.float16 if dtype == "fp16" else torch.float32)
    # Once as optimum writes it, once more with the weights in one file.
    require_space(directory, 2 * _BYTES[dtype] * sum(weight.numel() for weight in model.parameters()))
    with tempfile.TemporaryDirectory(prefix=".export.", dir=directory) as scratch:
        exported = Path(scratch)
        _export(model, exported, checkpoint)
        graph = ir.load(exported / GRAPH)
        ClearMetadataAndDocStringPass()(graph)
        ir.save(graph, directory / GRAPH, external_data=DATA)
        copied = {path.name for path in companion_files(checkpoint)}
        for path in companion_files(checkpoint):
            copy_by_kernel(path, directory / path.name)
        for path in companion_files(exported):
            if path.name not in copied:
                copy_by_kernel(path, directory / path.name)
    return directory / GRAPH


def _export(model: object, directory: Path, checkpoint: Path) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    try:
        with _quiet():
            onnx_export_from_model(model, output=directory, task=_TASK, do_validation=False)
    except _EXPORT_FAILS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BakeoutError(
            f"{checkpoint} cannot be exported to ONNX ({reason}).",
            "Use an architecture that optimum exports for text generation, or bake an ONNX graph made elsewhere.",
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
