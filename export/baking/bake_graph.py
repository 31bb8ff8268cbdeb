"""A plan baked into an ONNX graph: edited without its weights, which the kernel copies."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from bakeout.export.artifacts.file_names import CARD, MANIFEST, PLAN, RECIPE
from bakeout.export.artifacts.model_source import model_source, require_unbaked
from bakeout.export.artifacts.onnx_directory import companion_files, copy_companions
from bakeout.export.artifacts.onnx_layout import DECODE, PREFILL, graphs_of, home_of, variant_of
from bakeout.export.baking.bake_checkpoint import require_weights
from bakeout.export.baking.quantise import quantise
from bakeout.export.baking.runtimes import (
    describe_to,
    name_data_for,
    place_of_graph,
    require_pairs_served,
    require_served,
)
from bakeout.export.baking.tokenizer_config import choose_template, limit_tokenizer, name_known_class
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.genai_config import (
    GENAI_CONFIG,
    copy_genai_config,
    genai_feeds_back,
    require_whole_prompts,
    write_genai_config,
)
from bakeout.export.running.overflow import require_finite
from bakeout.graph_passes.apply import apply_plan, edit_weights
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph, name_data_files
from bakeout.graph_passes.key_space_detection.latch_place import choose_value_cache
from bakeout.graph_passes.prefill import add_empty_past, remove_empty_past
from bakeout.graph_passes.weight_edits import write_edited_tensors
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.errors import BakeoutError
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

    Raises ``BakeoutError`` for a graph that a plan is baked into, for another checkpoint than the plan's, and where
    prompts are read in chunks and the plan's check needs them whole.
    """
    source = model_source(model, variant)
    if isinstance(source, Path):
        require_unbaked(home_of(source))
        if _reads_prompts(source):
            raise BakeoutError(
                f"{source} reads prompts alone, and another graph goes on.", f"Name {source.with_name(DECODE)}."
            )
    else:
        require_weights(source, plan)
    is_pair = isinstance(source, Path) and len(graphs_of(source)) > 1
    if not is_pair and plan.check is not None and plan.check.positions == "mean":
        require_whole_prompts(home_of(source) if isinstance(source, Path) else source.directory)
    return source


def edit_graph(
    graph: ir.Model,
    plan: Plan,
    options: BakeOptions,
    *,
    edited: Sequence[Receipt] | None = None,
    latch_layer: int | None = None,
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
        latch_layer=latch_layer,
        edited=edited,
    )


def edited_graphs(base: GraphBase, plan: Plan, options: BakeOptions) -> Iterator[tuple[ir.Model, list[Receipt]]]:
    """The graph of ``base``, or both of its pair, edited in memory, each with its receipts; not quantised."""
    layer = _latch_layer(base.graph, plan, options)
    companions = companion_files(base.directory)
    for source in graphs_of(base.graph):
        graph = load_graph(source)
        past = add_empty_past(graph) if _reads_prompts(source) else []
        place = _place(base, source, options)
        name_data_for(options.runtimes, graph, place)
        receipts = edit_graph(graph, plan, options, latch_layer=layer)
        remove_empty_past(graph, past)
        require_served(options.runtimes, graph, {path.name for path in companions})
        if options.quantize is None:
            _require_own_names(source, data_files(graph), companions, place)
        yield graph, _named(source, receipts)


def write_baked_graph(
    base: GraphBase, plan: Plan, options: BakeOptions, directory: Path, track: Track
) -> list[Receipt]:
    """Write baked graph, data files, companion files and genai's configuration into ``directory``.

    The graph lies where the runtimes look for it (``place_of_graph``), and its data files beside it; ``find_graph``
    finds it there, for every later step and command. Of a pair both are baked, each with receipts of its own, and data
    files that are equal are shared.
    """
    layer = _latch_layer(base.graph, plan, options)
    first, *second = graphs_of(base.graph)
    is_pair = bool(second)
    place = _place(base, base.graph, options)
    graph, receipts = _write_graph(base.graph, base, plan, options, directory, place, track, layer)
    if is_pair:
        with scratch_directory(directory) as scratch:
            graph, own = _write_graph(first, base, plan, options, scratch, first.name, track, layer)
            name_data_files(graph, {name: _joined(scratch, name, directory) for name in data_files(graph)})
            (directory / first.name).write_bytes(graph_bytes(graph))
        receipts = [*own, *receipts]
    companions = companion_files(base.directory)
    copy_companions((path for path in companions if path.name != GENAI_CONFIG), directory)
    limit_tokenizer(directory, {str(value.name) for value in graph.graph.inputs})
    name_known_class(directory)
    choose_template(directory, plan)
    if not is_pair:
        _describe_to_genai(graph, base.directory, directory, place)
        describe_to(options.runtimes, graph, directory, place)
    return receipts


def _latch_layer(path: Path, plan: Plan, options: BakeOptions) -> int | None:
    """Of a pair the cache that carries a refusal on, as the second graph needs it; else it is chosen while baking.

    Raises ``BakeoutError`` where a pair is not what the options ask for.
    """
    if len(graphs_of(path)) == 1:
        return None
    require_pairs_served(options)
    return choose_value_cache(read_anatomy(load_graph(path))).writer.cache.layer if plan.check else None


def _reads_prompts(graph: Path) -> bool:
    """Whether it is the first of a pair."""
    return graph in graphs_of(graph.with_name(DECODE))[:-1]


def _named(graph: Path, receipts: Sequence[Receipt]) -> list[Receipt]:
    """Receipts that tell which graph of a pair they are for."""
    if len(graphs_of(graph)) == 1 and not _reads_prompts(graph):
        return list(receipts)
    return [replace(receipt, detail={**receipt.detail, "graph": graph.name}) for receipt in receipts]


def _write_graph(
    source: Path,
    base: GraphBase,
    plan: Plan,
    options: BakeOptions,
    directory: Path,
    place: str,
    track: Track,
    latch_layer: int | None,
) -> tuple[ir.Model, list[Receipt]]:
    """The graph in ``source``, baked and written to ``place`` in ``directory``, and the receipts."""
    with scratch_directory(directory) as scratch:
        graph = load_graph(source)
        past = add_empty_past(graph) if _reads_prompts(source) else []
        receipts = edit_weights(graph, plan)
        if options.quantize:
            graph = quantise(graph, scratch, options.quantize)
        name_data_for(options.runtimes, graph, place)
        companions = companion_files(base.directory)
        weights = data_files(graph)
        receipts = edit_graph(graph, plan, options, edited=receipts, latch_layer=latch_layer)
        remove_empty_past(graph, past)
        require_served(options.runtimes, graph, {path.name for path in companions})
        _require_own_names(source, weights, companions, place)
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
    return graph, _named(source, receipts)


def _joined(scratch: Path, name: str, directory: Path) -> str:
    """Move a data file of the first graph to those of the second, unless that has the same one: its name there."""
    for path in directory.rglob("*"):
        if path.is_file() and scratch not in path.parents and filecmp.cmp(path, scratch / name, shallow=False):
            return path.relative_to(directory).as_posix()
    free = PurePosixPath(name)
    while (directory / free).exists():
        free = free.with_name(f"{Path(PREFILL).stem}.{free.name}")
    (directory / free).parent.mkdir(parents=True, exist_ok=True)
    (scratch / name).replace(directory / free)
    return str(free)


def _place(base: GraphBase, source: Path, options: BakeOptions) -> str:
    """Where the graph in ``source``, of ``base``, lies in the artifact: those of a pair keep their names."""
    is_pair = len(graphs_of(base.graph)) > 1
    return source.name if is_pair else place_of_graph(options.runtimes, _variant(base, options))


def _variant(base: GraphBase, options: BakeOptions) -> str:
    """Which variant of the model the baked graph is, by the names of public repositories."""
    if options.quantize:
        return "q4" if options.quantize == "int4" else options.quantize
    return options.dtype if base.exported else variant_of(base.graph.name)


def _describe_to_genai(graph: ir.Model, source: Path, directory: Path, place: str) -> None:
    if (source / GENAI_CONFIG).is_file():
        copy_genai_config(source, directory, place)
    elif (directory / "config.json").is_file() and genai_feeds_back(graph):
        write_genai_config(directory, graph, place)


def _require_own_data(base: GraphBase, weights: Mapping[str, Path]) -> None:
    for name in weights:
        require_own_file(base.graph.parent / name, base.directory)


def _require_own_names(graph: Path, weights: Mapping[str, Path], companions: Sequence[Path], place: str) -> None:
    taken = {PurePosixPath(place).name, PLAN, MANIFEST, GENAI_CONFIG, CARD, RECIPE} | {path.name for path in companions}
    if clash := sorted(taken & weights.keys()):
        raise GraphError(f"{graph}: its data file has the name of another file, {clash[0]}.", "Export it again.")
