"""What interventions cost in graphs of different exporters and precisions, and what the graphs cost beside each other.

A Llama of at least 100 M parameters with random weights, as in ``speed.py``; a prefill, and decode behind it.

    python examples/benchmarks/graph_speed.py --cache /tmp/bakeout-graph-speed
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
from builder_graph import PRECISIONS, build
from comparison import Comparison, compare_loaded, print_machine, print_table
from random_llama import Shape, bake, key_space_detection, neuron_adjust, random_llama
from transformers import AutoTokenizer
from workloads import OPENING, Workload, loaded, require_outcome

from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.baking.quantise import quantise
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import DType
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.plan import Intervention
from bakeout.models.skills import checkpoint_directory

Compare = Callable[[Path, Path, Workload], Comparison]
OPTIMUM = "optimum fp32"
BUILDERS = {f"genai builder {precision}": precision for precision in PRECISIONS}
GRAPHS = (OPTIMUM, "optimum fp16", "optimum int8", "dynamo fp32", *BUILDERS)


@click.command()
@click.option("--layers", default=12, show_default=True)
@click.option("--hidden", default=768, show_default=True)
@click.option("--width", default=3072, show_default=True, help="F, the width of an FFL.")
@click.option("--vocabulary", default=16000, show_default=True)
@click.option("--prompt", default=128, show_default=True, help="Tokens of a prefill.")
@click.option("--loads", default=8, show_default=True, help="How often the sessions of a ratio are loaded.")
@click.option("--pairs", default=10, show_default=True, help="Interleaved pairs a load.")
@click.option("--threads", type=int, help="Threads; by default ONNX Runtime chooses.")
@click.option("--clock", type=click.Choice(["wall", "processor"]), default="wall", show_default=True)
@click.option("--only", type=click.Choice(["baked", "exporters"]), help="One of the two tables alone.")
@click.option("--graph", "names", type=click.Choice(GRAPHS), multiple=True, help="Graphs of the first table; else all.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where the graphs are kept for the next time.")
def main(
    layers: int,
    hidden: int,
    width: int,
    vocabulary: int,
    prompt: int,
    loads: int,
    pairs: int,
    threads: int | None,
    clock: str,
    only: str | None,
    names: Sequence[str],
    cache: Path | None,
) -> None:
    """Measure and print two tables: baked against unbaked graphs, and the builder's graphs against optimum's.

    On a machine that is busy otherwise: --threads 1 --clock processor. GLIBC_TUNABLES=glibc.malloc.hugetlb=1 lets
    large pages hold the weights, which narrows the intervals.
    """
    head_size = 64
    heads = hidden // head_size
    shape = Shape(layers, hidden, width, vocabulary, heads, max(heads // 3, 1), head_size, 2 * prompt + OPENING)
    workloads = [Workload(f"decode at {prompt}", prompt, 1), Workload(f"prefill of {prompt}", 0, prompt)]
    interventions: dict[str, Intervention] = {
        "NA 3 %, threshold": neuron_adjust(shape.layers, shape.width, "threshold"),
        f"KSD in layer {layers // 2 - 1}, passing": key_space_detection(shape, refuses=False, layer=layers // 2 - 1),
    }
    print_machine("onnxruntime-gpu", "onnxruntime-genai-cuda", "optimum-onnx")
    print(f"{shape}, {loads} loads of {pairs} pairs, {clock} time\n", flush=True)

    def compared(baseline: Path, variant: Path, workload: Workload) -> Comparison:
        sessions = (loaded(graph, workload, threads) for graph in (baseline, variant))
        return compare_loaded(*sessions, loads=loads, pairs=pairs, clock=clock)

    with tempfile.TemporaryDirectory() as temporary:
        root = (cache or Path(temporary)) / "-".join(map(str, (layers, hidden, width, vocabulary, prompt)))
        graphs = _graphs(shape, root, names or GRAPHS)
        if only != "exporters":
            print_table(
                ["graph", "run", "intervention", "unbaked, ms", "baked, ms", "ratio (95 % interval)"],
                _baked_rows(graphs, shape, interventions, workloads, compared),
            )
            print()
        if only != "baked":
            print_table(
                ["graph", "run", "intervention", "optimum fp32, ms", "this graph, ms", "ratio (95 % interval)"],
                _exporter_rows(_graphs(shape, root, (OPTIMUM, *BUILDERS)), shape, interventions, workloads, compared),
            )


def _baked_rows(
    graphs: Mapping[str, Path],
    shape: Shape,
    interventions: Mapping[str, Intervention],
    workloads: Sequence[Workload],
    compared: Compare,
) -> Iterator[list[str]]:
    for graph, directory in graphs.items():
        for name, intervention in interventions.items():
            path = bake(directory, shape, intervention)
            for workload in workloads:
                require_outcome(Runner(directory), Runner(path), intervention, workload)
                yield _row(graph, workload, name, compared(directory, path, workload))


def _exporter_rows(
    graphs: Mapping[str, Path],
    shape: Shape,
    interventions: Mapping[str, Intervention],
    workloads: Sequence[Workload],
    compared: Compare,
) -> Iterator[list[str]]:
    optimum = graphs[OPTIMUM]
    for graph in BUILDERS:
        for workload in workloads:
            yield _row(graph, workload, "none", compared(optimum, graphs[graph], workload))
            for name, intervention in interventions.items():
                theirs, own = (bake(directory, shape, intervention) for directory in (optimum, graphs[graph]))
                yield _row(graph, workload, name, compared(theirs, own, workload))


def _row(graph: str, workload: Workload, name: str, measured: Comparison) -> list[str]:
    times = f"{measured.baseline:.1f}", f"{measured.variant:.1f}"
    return [graph, workload.name, name, *times, measured.interval]


def _graphs(shape: Shape, root: Path, names: Sequence[str]) -> dict[str, Path]:
    """The directory of each graph of the same random model, made where it is not there yet."""
    directories = {name: root / name.replace(" ", "-") for name in names}
    missing = [name for name, directory in directories.items() if not (directory / "model.onnx").is_file()]
    checkpoint = root / "checkpoint"
    if missing and not checkpoint.is_dir():
        random_llama(shape).save_pretrained(checkpoint)
        # The builder asks for a tokenizer; which one is all the same.
        AutoTokenizer.from_pretrained(checkpoint_directory()).save_pretrained(checkpoint)
    for name in missing:
        exporter, _, precision = name.rpartition(" ")
        if name in BUILDERS:
            build(checkpoint, directories[name], precision)
            continue
        directories[name].mkdir(exist_ok=True)
        if precision == "int8":
            single = f"{exporter} fp32"
            source = _graphs(shape, root, [single])[single]
            quantise(load_graph(source / "model.onnx"), directories[name])
            for path in companion_files(source):
                shutil.copy(path, directories[name])
        else:
            dtype: DType = "fp16" if precision == "fp16" else "fp32"
            export_checkpoint(checkpoint, directories[name], dtype, exporter=exporter)  # type: ignore[arg-type]
    return directories


if __name__ == "__main__":
    main()
