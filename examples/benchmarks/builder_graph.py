"""Graphs of the onnxruntime-genai builder, made offline from a checkpoint's directory."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

PRECISIONS = ("fp32", "int4")


def build(checkpoint: Path, directory: Path, precision: str) -> Path:
    """Run the builder, for the CPU, with its defaults for ``precision``, one of ``PRECISIONS``: ``directory``."""
    with _quiet():
        from onnxruntime_genai.models import builder

        builder.create_model(None, str(checkpoint), str(directory), precision, "cpu", str(directory / "cache"))
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
