"""How exporters fail, and what they print meanwhile."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.export.recipes.bake_options import DType

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


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What follows is advice to who develops the other project, or uses it: a later paragraph, or a sentence that begins so.
_ADVICE = re.compile(
    r"\n\s*\n.*|(?<=[.!?:)])\s+(?:Please|Refer to|See|For more|Next steps|You (?:should|can|may)|If you)\b.*", re.DOTALL
)


@contextlib.contextmanager
def told_of(checkpoint: Path, dtype: DType, exporter: str) -> Iterator[None]:
    """A block that exports, quietly, and whose errors become a ``BakeoutError`` that names what was exported."""
    try:
        with quiet():
            yield
    except _EXPORT_FAILS as error:
        raise BakeoutError(
            f"{checkpoint} cannot be exported to ONNX in {dtype} by {exporter} ({reason_of(error)}).",
            ("Export in fp32, or bake" if dtype == "fp16" else "Use an architecture that it exports, or bake")
            + " an ONNX graph made elsewhere.",
        ) from error


def reason_of(error: BaseException) -> str:
    """What an error of another project says, in one line of bearable length, without colours and advice."""
    # torch.onnx wraps what went wrong into advice alone.
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    text = _COLOURS.sub("", str(error)).strip()
    return " ".join(_ADVICE.sub("", text).split())[:300].rstrip(".") or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
