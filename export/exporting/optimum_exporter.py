"""optimum: TorchScript, and its own knowledge of each architecture. No other module knows it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bakeout.export.artifacts.file_names import GRAPH
from bakeout.export.exporting.failures import quiet, reason_of, told_of
from bakeout.export.exporting.mixtures import traceable_mixtures
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.extras import installing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bakeout.export.recipes.bake_options import DType

PACKAGES = ("optimum", "optimum-onnx", "torch", "transformers")
_TASK = "text-generation-with-past"
# Families that optimum-onnx 0.1 has no configuration for: their inputs and caches are Llama's.
_LLAMA_LIKE = ("mixtral", "olmoe", "qwen2_moe")
# torch infers shapes from the values of parameters, of which it makes copies. No shape has more numbers than this.
_LONGEST_SHAPE = 64


def unavailable(model_type: str) -> str | None:
    """Why optimum cannot export an architecture here; None where nothing is known against it."""
    try:
        with quiet():
            import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the architectures
            from optimum.exporters.tasks import TasksManager

            _register_families()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "optimum":
            raise
        return f"optimum-onnx is not installed: {installing('optimum')}"
    except ImportError as error:
        return f"optimum-onnx does not run with the installed transformers ({reason_of(error)})"
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError:
        tasks = {}
    return None if _TASK in tasks else "optimum does not know this architecture"


def export(model: PreTrainedModel, directory: Path, checkpoint: Path, dtype: DType) -> ir.Model:
    """The graph of ``model``; its configuration is written into ``directory``.

    Raises ``BakeoutError`` where optimum cannot; the errors name ``checkpoint`` and ``dtype``.
    """
    with told_of(checkpoint, dtype, "optimum"), traceable_mixtures(model), _weights_apart() as weights:
        from optimum.exporters.onnx import onnx_export_from_model

        onnx_export_from_model(model, output=directory, task=_TASK, do_validation=False, no_post_process=True)
    graph = load_graph(directory / GRAPH)
    _attach(weights, graph.graph)
    return graph


@contextlib.contextmanager
def _weights_apart() -> Iterator[dict[str, Tensor]]:
    """Let torch copy and write no weights, and give those that it would have written, in the end, by their names."""
    import torch

    try:
        exporter: Any = import_module("torch.onnx._internal.torchscript_exporter.utils")
    except ImportError:
        # Before torch 2.9.
        exporter = import_module("torch.onnx.utils")
    onnx: Any = torch.onnx
    weights: dict[str, Tensor] = {}
    internal: Any = torch._C
    traced, export, infer = exporter._model_to_graph, onnx.export, internal._jit_pass_onnx_graph_shape_type_inference

    def keep_weights(*arguments: Any, **options: Any) -> tuple[Any, Mapping[str, Tensor], Any]:
        graph, of_graph, outputs = traced(*arguments, **options)
        weights.update(of_graph)
        return graph, of_graph, outputs

    def infer_without_weights(graph: Any, parameters: Mapping[str, Any], opset: int) -> None:
        short = {
            name: value
            for name, value in parameters.items()
            if not isinstance(value, torch.Tensor) or value.numel() <= _LONGEST_SHAPE
        }
        infer(graph, short, opset)

    exporter._model_to_graph, onnx.export = keep_weights, functools.partial(export, export_params=False)
    internal._jit_pass_onnx_graph_shape_type_inference = infer_without_weights
    try:
        yield weights
    finally:
        exporter._model_to_graph, onnx.export = traced, export
        internal._jit_pass_onnx_graph_shape_type_inference = infer


def _register_families() -> None:
    """Tell optimum of the families that it has no configuration for."""
    from optimum.exporters.onnx.model_configs import COMMON_TEXT_GENERATION_TASKS, LlamaOnnxConfig
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import NormalizedTextConfigWithGQA

    class MixtureOnnxConfig(LlamaOnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfigWithGQA

    for family in _LLAMA_LIKE:
        TasksManager.create_register("onnx")(family, *COMMON_TEXT_GENERATION_TASKS)(MixtureOnnxConfig)


def _attach(weights: Mapping[str, Tensor], graph: ir.Graph) -> None:
    """Make initialisers of the inputs that are ``weights``, whose memory they share."""
    for value in list(graph.inputs):
        if (weight := weights.get(str(value.name))) is not None:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(weight.detach(), name=value.name)
            graph.register_initializer(value)
