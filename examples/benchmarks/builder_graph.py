"""Graphs of the onnxruntime-genai builder, made offline from a checkpoint's directory."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

PRECISIONS = ("fp32", "fp16", "int4")


def build(checkpoint: Path, directory: Path, precision: str) -> Path:
    """Run the builder with its defaults for ``precision``, one of ``PRECISIONS``: ``directory``.

    For the CPU; in fp16 for CUDA, whose graphs the CPU runs too, while the builder's fp16 graphs for the CPU take no
    tokens behind a past but one at a time.
    """
    provider = "cuda" if precision == "fp16" else "cpu"
    with _quiet():
        from onnxruntime_genai.models import builder

        builder.create_model(None, str(checkpoint), str(directory), precision, provider, str(directory / "cache"))
    return directory


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the builder prints, and the logging that it turns on for the whole process."""
    root = logging.root
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
