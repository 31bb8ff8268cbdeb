"""optimum, behind one function: no other module knows the exporter."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from bakeout.export.exporting.mixtures import traceable_mixtures
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bakeout.export.recipes.bake_options import DType

_TASK = "text-generation-with-past"
# Families that optimum-onnx 0.1 has no configuration for: their inputs and caches are Llama's.
_LLAMA_LIKE = ("mixtral", "olmoe", "qwen2_moe")
# Errors of an exporter that does not know a model, or of ONNX Runtime, with which optimum checks its output. A full
# disk is an OSError, which is not among them.
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


def export_with_optimum(model: PreTrainedModel, directory: Path, checkpoint: Path, dtype: DType) -> dict[str, Tensor]:
    """Write the graph of ``model``, with a KV cache, and its configuration into ``directory``; return its weights.

    The graph has its weights among its inputs, by the names of what is returned. These are the model's own memory, or
    views of it, but for what the exporter computed of them: torch and optimum themselves would hold them four times.
    Raises ``BakeoutError`` where optimum cannot; the errors name ``checkpoint`` and ``dtype``.
    """
    from optimum.exporters.onnx import onnx_export_from_model

    _register_families()
    try:
        with _quiet(), traceable_mixtures(model), _weights_apart() as weights:
            onnx_export_from_model(model, output=directory, task=_TASK, do_validation=False, no_post_process=True)
    except _EXPORT_FAILS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BakeoutError(
            f"{checkpoint} cannot be exported to ONNX in {dtype} ({reason}).",
            ("Export in fp32, or bake" if dtype == "fp16" else "Use an architecture that optimum exports, or bake")
            + " an ONNX graph made elsewhere.",
        ) from error
    return weights


@contextlib.contextmanager
def _weights_apart() -> Iterator[dict[str, Tensor]]:
    """Let torch write no weights into graphs, and give those that it would have written, in the end, by their names."""
    import torch

    try:
        exporter: Any = import_module("torch.onnx._internal.torchscript_exporter.utils")
    except ImportError:
        # Before torch 2.9.
        exporter = import_module("torch.onnx.utils")
    onnx: Any = torch.onnx
    weights: dict[str, Tensor] = {}
    traced, export = exporter._model_to_graph, onnx.export

    def keep_weights(*arguments: Any, **options: Any) -> tuple[Any, Mapping[str, Tensor], Any]:
        graph, of_graph, outputs = traced(*arguments, **options)
        weights.update(of_graph)
        return graph, of_graph, outputs

    exporter._model_to_graph, onnx.export = keep_weights, functools.partial(export, export_params=False)
    try:
        yield weights
    finally:
        exporter._model_to_graph, onnx.export = traced, export


def _register_families() -> None:
    """Tell optimum of the families that it has no configuration for."""
    from optimum.exporters.onnx.model_configs import COMMON_TEXT_GENERATION_TASKS, LlamaOnnxConfig
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import NormalizedTextConfigWithGQA

    class MixtureOnnxConfig(LlamaOnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfigWithGQA

    for family in _LLAMA_LIKE:
        TasksManager.create_register("onnx")(family, *COMMON_TEXT_GENERATION_TASKS)(MixtureOnnxConfig)


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
