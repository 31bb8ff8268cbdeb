"""Whether a model that was trained in another type can be computed in float16, whose largest number is 65504."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.running.observing import observing_runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.models.errors import BakeoutError


def require_finite(graph_file: Path, prompts: Sequence[Sequence[int]]) -> None:
    """Raise ``BakeoutError`` where a graph gives anything but finite logits on ``prompts``, token ids.

    A float32 graph is not run: only one whose weights are float16, or quantised, may compute in float16.
    """
    graph_file = graphs_of(graph_file)[0]
    graph = load_graph(graph_file)
    if not prompts or stored_precision(graph) == "float32":
        return
    for _, logits in observing_runner(graph_file, graph, ()).each_logits(prompts):
        if not np.isfinite(logits).all():
            raise overflow()


def overflow() -> BakeoutError:
    """The error of a model that cannot be computed in float16."""
    return BakeoutError(
        "The model overflows in fp16: some of what it computes is beyond 65504, and its logits are no numbers.",
        "Export it in fp32 (`dtype: fp32`).",
    )
