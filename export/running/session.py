"""ONNX Runtime's sessions: providers, memory, and errors of graphs that it cannot run."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from bakeout.models.errors import BakeoutError

CANNOT_RUN = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
# What computes constants once, when a session is opened: whatever depends on weights alone, and float16 weights as
# float32 ones for a processor that multiplies no float16.
_COMPUTED_ONCE = ("ConstantFolding", "FuseFp16InitializerToFp32NodeTransformer")
# The highest of ONNX Runtime's log levels.
_FATAL = 4


def open_session(
    path: Path, threads: int | None, graph: bytes | None, data: Path, *, mapped: bool
) -> onnxruntime.InferenceSession:
    """A session of the graph in ``path``, or of ``graph`` with the data files in ``data``: options as of ``Runner``."""
    options = onnxruntime.SessionOptions()
    # Its own lines, on standard error, hold the graph's names as they are. What it raises is told.
    options.log_severity_level = _FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and _has_nvidia_driver():
        # The libraries that torch or the nvidia wheels bring, where the system has none.
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Else it keeps what one run has used.
        options.enable_cpu_mem_arena = False
        # Else many weights are cast before the first of them is multiplied.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    left_out = list(_COMPUTED_ONCE) if mapped else []
    try:
        return onnxruntime.InferenceSession(graph or path, options, providers, disabled_optimizers=left_out)
    except CANNOT_RUN as error:
        raise cannot_run(path, error) from None


def cannot_run(path: Path, error: Exception) -> BakeoutError:
    """The error of a graph that ONNX Runtime refuses with ``error``."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BakeoutError(f"{path} cannot be run ({reason}).", "Copy or export the model again.")


def _has_nvidia_driver() -> bool:
    # ONNX Runtime's GPU package lists CUDA on any machine, and logs an error when asked for it on one without.
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
