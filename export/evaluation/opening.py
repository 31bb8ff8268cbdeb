"""The models of an evaluation, opened in the runtime that answers: exported first where they are checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bakeout.export.artifacts.model_source import model_source
from bakeout.export.evaluation.graders.grader import Grader, ReadingGrader
from bakeout.export.recipes.bake_options import DType, ExporterName
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.genai_runner import AnyRunner, GenaiRunner, no_logits, require_genai
from bakeout.export.running.runner import Runner
from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions


def as_onnx(model: Path, scratch: Path, exporter: ExporterName, dtype: DType = "fp32") -> Path:
    """``model`` itself where it is an ONNX file or holds one, else the checkpoint, exported into ``scratch``."""
    source = model_source(model)
    if isinstance(source, Path):
        return source
    from bakeout.export.exporting.onnx_export import export_checkpoint

    return export_checkpoint(source.directory, scratch, exporter=exporter, dtype=dtype)


def opened(
    model: Path,
    scratch: Path,
    exporter: ExporterName,
    options: EvaluateOptions,
    chat_template: ChatTemplateOptions | None = None,
    dtype: DType = "fp32",
) -> AnyRunner:
    """``model`` in the runtime that the options name; a checkpoint is exported in ``dtype``.

    Raises ``BakeoutError`` where the runtime cannot run it.
    """
    graph = as_onnx(model, scratch, exporter, dtype)
    if options.runtime == "genai":
        return GenaiRunner(graph, chat_template=chat_template)
    return Runner(graph, chat_template=chat_template)


def require_runtime(options: EvaluateOptions, graders: Iterable[Grader], *, texts: bool = False) -> None:
    """Raise ``BakeoutError``, before anything is done, where the runtime is missing or cannot measure what is asked."""
    if options.runtime != "genai":
        return
    require_genai()
    readers = [f"the grader `{next(iter(by.described))}`" for by in graders if isinstance(by, ReadingGrader)]
    readers += (["the perplexity of texts"] if texts else []) + (["a task"] if options.tasks else [])
    if readers:
        raise no_logits(readers[0])
