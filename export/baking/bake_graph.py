"""A plan baked into an ONNX graph: edited without its weights, which the kernel copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from bakeout.export.artifacts.file_names import CARD, MANIFEST, PLAN, RECIPE
from bakeout.export.artifacts.model_source import model_source, require_unbaked
from bakeout.export.artifacts.onnx_directory import companion_files, copy_companions
from bakeout.export.artifacts.onnx_layout import home_of, variant_of
from bakeout.export.baking.bake_checkpoint import require_weights
from bakeout.export.baking.genai_config import GENAI_CONFIG, copy_genai_config, has_cache, write_genai_config
from bakeout.export.baking.quantise import quantise
from bakeout.export.baking.runtimes import describe_to, name_data_for, place_of_graph, require_served
from bakeout.export.baking.tokenizer_config import choose_template, limit_tokenizer
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.overflow import require_finite
from bakeout.graph_passes.apply import apply_plan, edit_weights
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph
from bakeout.graph_passes.weight_edits import write_edited_tensors
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.disk_room import require_space, room_on_disk
from bakeout.models.files.links import require_own_file
from bakeout.models.files.writing import scratch_directory
from bakeout.models.plan import Plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track


@dataclass(frozen=True)
class GraphBase:
    """A graph to bake into. ``exported``: by us, from a checkpoint, so that its files may be taken away."""

    graph: Path
    exported: bool

    @property
    def model(self) -> Path:
        """What can be run."""
        return self.graph

    @property
    def directory(self) -> Path:
        """Where the graph's configuration and tokenizer lie: beside it, or above it."""
        return home_of(self.graph)


@contextmanager
def graph_base(
    model: str | Path | Checkpoint, plan: Plan, options: BakeOptions, directory: Path
) -> Iterator[GraphBase]:
    """The graph of ``model``, exported into a scratch directory within ``directory`` where it is a checkpoint."""
    source = graph_or_checkpoint(model, plan, options.variant)
    prompts = plan.canary.input_ids.tolist()
    if isinstance(source, Path):
        require_finite(source, prompts)
        yield GraphBase(source, exported=False)
        return
    from bakeout.export.exporting.onnx_export import export_checkpoint

    with scratch_directory(directory) as scratch:
        graph = export_checkpoint(source.directory, scratch, options.dtype, prompts, options.exporter)
        yield GraphBase(graph, exported=True)


def graph_or_checkpoint(model: str | Path | Checkpoint, plan: Plan, variant: str | None = None) -> Path | Checkpoint:
    """The graph's file that ``model`` is, or the checkpoint to export; with ``variant`` the graph of this name in it.

    Raises ``BakeoutError`` for a graph that a plan is baked into, and for another checkpoint than the plan's.
    """
    source = model_source(model, variant)
    if isinstance(source, Path):
        require_unbaked(home_of(source))
    else:
        require_weights(source, plan)
    return source


def edit_graph(
    graph: ir.Model, plan: Plan, options: BakeOptions, *, edited: Sequence[Receipt] | None = None
) -> list[Receipt]:
    """``apply_plan`` as the options ask for it."""
    return apply_plan(
        graph,
        plan,
        inline=options.inline,
        early_exit=options.early_exit,
        monitor=options.monitor,
        adapter_slots=options.adapter_slots,
        webgpu="webgpu" in options.runtimes,
        edited=edited,
    )


def write_baked_graph(
    base: GraphBase, plan: Plan, options: BakeOptions, directory: Path, track: Track
) -> list[Receipt]:
    """Write baked graph, data files, companion files and genai's configuration into ``directory``.

    The graph lies where the runtimes look for it (``place_of_graph``), and its data files beside it; ``find_graph``
    finds it there, for every later step and command.
    """
    with scratch_directory(directory) as scratch:
        graph = load_graph(base.graph)
        receipts = edit_weights(graph, plan)
        if options.quantize:
            graph = quantise(graph, scratch, options.quantize)
        place = place_of_graph(options.runtimes, _variant(base, options))
        name_data_for(options.runtimes, graph, place)
        companions = companion_files(base.directory)
        weights = data_files(graph)
        receipts = edit_graph(graph, plan, options, edited=receipts)
        require_served(options.runtimes, graph, {path.name for path in companions})
        _require_own_names(base.graph, weights, companions, place)
        content = graph_bytes(graph)
        are_ours = base.exported or options.quantize is not None
        copied = companions if are_ours else [*companions, *weights.values()]
        if not are_ours:
            _require_own_data(base, weights)
        require_space(directory, len(content) + sum(room_on_disk(path) for path in copied))
        beside_graph = (directory / place).parent
        for name, path in track(weights.items(), "copying the weights", len(weights)):
            (beside_graph / name).parent.mkdir(parents=True, exist_ok=True)
            if are_ours:
                path.replace(beside_graph / name)
            else:
                copy_by_kernel(path, beside_graph / name)
        write_edited_tensors(graph, beside_graph)
    beside_graph.mkdir(exist_ok=True)
    (directory / place).write_bytes(content)
    copy_companions((path for path in companions if path.name != GENAI_CONFIG), directory)
    limit_tokenizer(directory, {str(value.name) for value in graph.graph.inputs})
    choose_template(directory, plan)
    _describe_to_genai(graph, base.directory, directory, place)
    describe_to(options.runtimes, graph, directory, place)
    return receipts


def _variant(base: GraphBase, options: BakeOptions) -> str:
    """Which variant of the model the baked graph is, by the names of public repositories."""
    if options.quantize:
        return "q4" if options.quantize == "int4" else options.quantize
    return options.dtype if base.exported else variant_of(base.graph.name)


def _describe_to_genai(graph: ir.Model, source: Path, directory: Path, place: str) -> None:
    if (source / GENAI_CONFIG).is_file():
        copy_genai_config(source, directory, place)
    elif (directory / "config.json").is_file() and has_cache(graph):
        write_genai_config(directory, graph, place)


def _require_own_data(base: GraphBase, weights: Mapping[str, Path]) -> None:
    for name in weights:
        require_own_file(base.graph.parent / name, base.directory)


def _require_own_names(graph: Path, weights: Mapping[str, Path], companions: Sequence[Path], place: str) -> None:
    taken = {PurePosixPath(place).name, PLAN, MANIFEST, GENAI_CONFIG, CARD, RECIPE} | {path.name for path in companions}
    if clash := sorted(taken & weights.keys()):
        raise GraphError(f"{graph}: its data file has the name of another file, {clash[0]}.", "Export it again.")
