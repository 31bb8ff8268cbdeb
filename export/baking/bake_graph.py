"""A plan baked into an ONNX graph: edited without its weights, which the kernel copies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from bakeout.export.artifacts.file_names import GRAPH, MANIFEST, PLAN
from bakeout.export.artifacts.onnx_directory import companion_files, find_graph
from bakeout.export.baking.bake_checkpoint import require_weights
from bakeout.export.baking.genai_config import GENAI_CONFIG, copy_genai_config, has_cache, write_genai_config
from bakeout.export.baking.quantise import Quantisation, quantise
from bakeout.export.baking.runtimes import RuntimeName, describe_to, name_data_for, require_served
from bakeout.graph_passes.apply import apply_plan, edit_weights
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph
from bakeout.graph_passes.weight_edits import write_edited_tensors
from bakeout.models.checkpoint.checkpoint_files import resolve_checkpoint
from bakeout.models.errors import BakeoutError
from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.disk_room import require_space, room_on_disk
from bakeout.models.plan import Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track


@dataclass(frozen=True)
class GraphSource:
    """A graph to bake into. ``exported``: by us, from a checkpoint, so that its files may be taken away."""

    graph: Path
    exported: bool


@dataclass(frozen=True)
class GraphOptions:
    """How the graph is edited: see ``export.baking.bake.BakeOptions``."""

    inline: bool
    early_exit: bool
    monitor: bool
    runtimes: tuple[RuntimeName, ...] = ()
    quantize: Quantisation | None = None


def is_graph(model: str | Path) -> bool:
    """Whether ``model`` names an ONNX file or directory, and not a checkpoint."""
    path = Path(model)
    return path.is_file() or path.suffix == ".onnx" or (path.is_dir() and any(path.glob("*.onnx")))


def find_base_graph(model: str | Path) -> Path:
    """The graph that ``model`` names. Raises ``BakeoutError`` where there is none, or it carries a plan already."""
    graph = find_graph(Path(model))
    if (graph.parent / MANIFEST).is_file():
        raise BakeoutError(
            f"{model} is an artifact: a plan is baked into it already.",
            "Bake into the base model: one plan can hold several interventions.",
        )
    return graph


@contextmanager
def as_graph(model: str | Path, plan: Plan, dtype: Literal["fp32", "fp16"], directory: Path) -> Iterator[GraphSource]:
    """The graph of ``model``, exported into a scratch directory within ``directory`` where it is a checkpoint."""
    if is_graph(model):
        yield GraphSource(find_base_graph(model), exported=False)
        return
    checkpoint = resolve_checkpoint(model)
    require_weights(checkpoint, plan)
    from bakeout.export.exporting.onnx_export import export_checkpoint

    with tempfile.TemporaryDirectory(prefix=".export.", dir=directory) as scratch:
        yield GraphSource(export_checkpoint(checkpoint, Path(scratch), dtype), exported=True)


def write_baked_graph(
    source: GraphSource, plan: Plan, options: GraphOptions, directory: Path, track: Track
) -> list[Receipt]:
    """Write baked graph, data files, companion files and genai's configuration into ``directory``."""
    with tempfile.TemporaryDirectory(prefix=".quantise.", dir=directory) as scratch:
        graph = load_graph(source.graph)
        receipts = edit_weights(graph, plan)
        if options.quantize:
            graph = quantise(graph, Path(scratch))
        name_data_for(options.runtimes, graph)
        companions = companion_files(source.graph.parent)
        weights = data_files(graph)
        receipts = apply_plan(
            graph,
            plan,
            inline=options.inline,
            early_exit=options.early_exit,
            monitor=options.monitor,
            edited=receipts,
        )
        require_served(options.runtimes, graph, {path.name for path in companions})
        _require_own_names(source.graph, weights, companions)
        content = graph_bytes(graph)
        are_ours = source.exported or options.quantize is not None
        copied = companions if are_ours else [*companions, *weights.values()]
        require_space(directory, len(content) + sum(room_on_disk(path) for path in copied))
        for name, path in track(weights.items(), "copying the weights", len(weights)):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            if are_ours:
                path.replace(directory / name)
            else:
                copy_by_kernel(path, directory / name)
        write_edited_tensors(graph, directory)
    (directory / GRAPH).write_bytes(content)
    for path in companions:
        if path.name != GENAI_CONFIG:
            copy_by_kernel(path, directory / path.name)
    _describe_to_genai(graph, source.graph.parent, directory)
    describe_to(options.runtimes, graph, directory)
    return receipts


def _describe_to_genai(graph: ir.Model, source: Path, directory: Path) -> None:
    if (source / GENAI_CONFIG).is_file():
        copy_genai_config(source, directory)
    elif (directory / "config.json").is_file() and has_cache(graph):
        write_genai_config(directory, graph)


def _require_own_names(graph: Path, weights: Mapping[str, Path], companions: Sequence[Path]) -> None:
    taken = {GRAPH, PLAN, MANIFEST, GENAI_CONFIG, "README.md", "recipe.yaml"} | {path.name for path in companions}
    if clash := sorted(taken & weights.keys()):
        raise GraphError(f"{graph}: its data file has the name of another file, {clash[0]}.", "Export it again.")
