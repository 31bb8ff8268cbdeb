"""Baking into a large graph: a Llama-3-8B-shaped ONNX file beside 16 GB of (sparse) data that is never read.

    python examples/benchmarks/size.py

The graph is exported from a model that is narrow, and then widened: the exporter never sees the large weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from comparison import print_machine, print_table
from own_process import in_a_process_of_its_own
from random_llama import Shape, export, key_space_detection, neuron_adjust, plan_of, random_llama

if TYPE_CHECKING:
    import onnx_ir as ir

    from bakeout.models.plan import Plan

LLAMA_3_8B = Shape(
    layers=32,
    hidden=4096,
    width=14336,
    vocabulary=128256,
    heads=32,
    key_value_heads=8,
    head_size=128,
    context=8192,
)
# Dimensions that occur nowhere else in the graph, so that they can be told apart when it is widened.
NARROW = replace(LLAMA_3_8B, hidden=48, width=80, vocabulary=272)
DATA = "model.onnx.data"
ALIGNMENT = 4096


@click.command()
@click.option("--layers", default=LLAMA_3_8B.layers, show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), help="Where the files go; by default a temporary one.")
def main(layers: int, directory: Path | None) -> None:
    """Measure the time and the peak of resident memory that baking Neuron Adjust and Key Space Detection takes."""
    shape = replace(LLAMA_3_8B, layers=layers)
    print_machine("onnx", "onnx-ir")
    print("NA 3 % of all neurons, KSD in the middle layer\n")
    with tempfile.TemporaryDirectory() as temporary:
        base = directory or Path(temporary)
        size = write_wide_graph(base, shape)
        print(f"{shape}, fp16, {size / 2**30:.1f} GiB of sparse data\n")
        print_table(["in a process of its own", "s", "peak resident, MiB"], _rows(base, shape))


def _rows(directory: Path, shape: Shape) -> Iterator[list[str]]:
    for name, measured in STAGES.items():
        seconds, peak = in_a_process_of_its_own(measured, directory, shape)
        yield [name, f"{seconds:.1f}", f"{peak / 2**20:.0f}"]


def write_wide_graph(directory: Path, shape: Shape) -> int:
    """Write ``directory/model.onnx`` and its data file, whose holes take no room. The data's size in bytes."""
    import onnx_ir as ir

    narrow = replace(NARROW, layers=shape.layers)
    wider = {getattr(narrow, name): getattr(shape, name) for name in ("hidden", "width", "vocabulary")}
    with tempfile.TemporaryDirectory() as temporary:
        model = ir.load(export(random_llama(narrow), Path(temporary), "fp16"))
        _widen_values(model.graph, wider)
        end = 0
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            sizes = tensor.shape.numpy()
            dimensions = [wider.get(size, size) for size in sizes]
            if not isinstance(tensor, ir.ExternalTensor) and dimensions == list(sizes):
                continue  # a small constant of the graph itself
            length = int(tensor.dtype.itemsize)
            for dimension in dimensions:
                length *= dimension
            value.shape = ir.Shape(dimensions)
            value.const_value = ir.ExternalTensor(
                DATA, end, length, tensor.dtype, shape=ir.Shape(dimensions), name=tensor.name or "", base_dir=directory
            )
            end += -(-length // ALIGNMENT) * ALIGNMENT
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / DATA).open("wb") as file:
            file.truncate(end)
        ir.save(model, directory / "model.onnx")
    return end


def _widen_values(graph: ir.Graph, wider: dict[int, int]) -> None:
    """Correct the recorded shapes of everything that is not a weight."""
    import onnx_ir as ir

    for value in (*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    wider.get(dimension, dimension) if isinstance(dimension, int) else dimension
                    for dimension in value.shape
                ]
            )


def _import(_directory: Path, _shape: Shape) -> None:
    import bakeout.graph_passes.apply
    import bakeout.graph_passes.key_space_detection.detection_pass  # noqa: F401


def _bake_graph(directory: Path, shape: Shape) -> None:
    from bakeout.graph_passes.apply import apply_plan
    from bakeout.graph_passes.graph.graph_file import load_graph, save_graph

    model = load_graph(directory / "model.onnx")
    apply_plan(model, _plan(shape))
    save_graph(model, directory / "baked.onnx")


def _bake_artifact(directory: Path, shape: Shape) -> None:
    from bakeout.export.baking.bake import bake

    # The canary would run the model, and this one has no weights to run.
    bake(directory / "model.onnx", _plan(shape), directory / "artifact", canary=False)


def _copy_and_hash(directory: Path, _shape: Shape) -> None:
    from bakeout.models.files.copying import copy_by_kernel
    from bakeout.models.files.hashing import hash_file

    copy_by_kernel(directory / DATA, directory / "copy")
    hash_file(directory / "copy")


def _plan(shape: Shape) -> Plan:
    detection = key_space_detection(shape, refuses=False, layer=shape.layers // 2 - 1)
    return plan_of(shape, neuron_adjust(shape.layers, shape.width, "threshold"), detection)


STAGES: dict[str, Callable[[Path, Shape], None]] = {
    "importing alone": _import,
    "baking the graph": _bake_graph,
    "`bake`: the whole artifact": _bake_artifact,
    "copying and hashing the data alone": _copy_and_hash,
}


if __name__ == "__main__":
    main()
