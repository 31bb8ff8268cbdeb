"""Run a loaded graph, with values from within it as further outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import graph_bytes, name_data_files_as_stored
from bakeout.graph_passes.graph.observe import ObservePass


def observing_runner(graph_file: Path, graph: ir.Model, names: Sequence[str], *, mapped: bool = True) -> Runner:
    """A runner of ``graph``, which was loaded from ``graph_file``, and is edited so that it gives the values ``names``.

    They are among ``Step.others``; ``mapped`` as of ``Runner``. Raises ``GraphError`` where the graph lacks one.
    """
    ObservePass(names)(graph)
    # As loaded: ONNX Runtime cannot read a tensor in an attribute that lies in a data file. It follows no link out of
    # the folder that it is given either.
    folder = name_data_files_as_stored(graph)
    return Runner(graph_file, graph=graph_bytes(graph), data=folder, mapped=mapped)
