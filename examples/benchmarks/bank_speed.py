"""What a bank of a thousand targets costs: one check with as many regions, one skill each, baked against unbaked.

A Llama with random weights in the shape of a model of half a billion parameters (its vocabulary cut), as a graph of
onnxruntime-genai's builder; a prefill, and decode behind it.

    python examples/benchmarks/bank_speed.py --cache /tmp/bakeout-bank-speed
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from builder_graph import PRECISIONS, build
from comparison import compare_loaded, print_machine, print_table
from random_llama import REFUSAL, Shape, bake, random_llama
from transformers import AutoTokenizer
from workloads import OPENING, Workload, loaded, require_outcome

from bakeout.export.running.runner import Runner
from bakeout.models.plan import Cubes, KeySpaceDetection, Positions
from bakeout.models.plan.kinds.regions.linear import HalfSpaces
from bakeout.models.plan.kinds.regions.regions import Regions
from bakeout.models.skills import checkpoint_directory

POSITIONS: tuple[Positions, ...] = ("query", "every")
REGIONS = ("cubes", "half-spaces")


@click.command()
@click.option("--targets", default=1000, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="int4", show_default=True)
@click.option("--prompt", default=128, show_default=True, help="Tokens of a prefill.")
@click.option("--loads", default=8, show_default=True, help="How often the sessions of a ratio are loaded.")
@click.option("--pairs", default=6, show_default=True, help="Interleaved pairs a load.")
@click.option("--only", type=click.Choice(POSITIONS), multiple=True, help="Positions to measure; else all.")
@click.option("--threads", type=int, help="Threads; by default ONNX Runtime chooses.")
@click.option("--clock", type=click.Choice(["wall", "processor"]), default="wall", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Where the graph is kept for the next time.")
def main(
    targets: int,
    precision: str,
    prompt: int,
    loads: int,
    pairs: int,
    only: tuple[Positions, ...],
    threads: int | None,
    clock: str,
    cache: Path | None,
) -> None:
    """Measure and print a table. On a machine that is busy otherwise: --threads 1 --clock processor."""
    shape = Shape(24, 896, 4864, 32000, 14, 2, 64, 2 * prompt + OPENING)
    workloads = [Workload(f"decode at {prompt}", prompt, 1), Workload(f"prefill of {prompt}", 0, prompt)]
    print_machine("onnxruntime-gpu", "onnxruntime-genai-cuda")
    print(f"{shape}, {precision}, {targets} targets, {loads} loads of {pairs} pairs, {clock} time\n", flush=True)

    def rows(directory: Path) -> Iterator[list[str]]:
        unbaked = directory / "model.onnx"
        for positions in only or POSITIONS:
            for regions in REGIONS:
                bank = bank_of(regions, positions, targets, shape)
                baked = bake(directory, shape, bank)
                for workload in workloads:
                    require_outcome(Runner(directory, threads=threads), Runner(baked, threads=threads), bank, workload)
                    sessions = (loaded(graph, workload, threads) for graph in (unbaked, baked))
                    measured = compare_loaded(*sessions, loads=loads, pairs=pairs, clock=clock)
                    times = f"{measured.baseline:.1f}", f"{measured.variant:.1f}"
                    yield [positions, regions, workload.name, *times, measured.interval]

    with tempfile.TemporaryDirectory() as temporary:
        directory = (cache or Path(temporary)) / precision
        if not (directory / "model.onnx").is_file():
            checkpoint = directory.parent / "checkpoint"
            random_llama(shape).save_pretrained(checkpoint)
            AutoTokenizer.from_pretrained(checkpoint_directory()).save_pretrained(checkpoint)
            build(checkpoint, directory, precision)
        header = ["positions", "regions", "run", "unbaked, ms", "baked, ms", "ratio (95 % interval)"]
        print_table(header, rows(directory))


def bank_of(name: str, positions: Positions, targets: int, shape: Shape) -> KeySpaceDetection:
    """Regions in directions drawn at random that no key is in, all in the middle layer."""
    drawn = np.random.default_rng(0).standard_normal((targets, shape.width))
    regions: Regions = (
        Cubes(drawn, np.ones_like(drawn)) if name == "cubes" else HalfSpaces(drawn, np.full(targets, -1e6))
    )
    return KeySpaceDetection(
        layers=(shape.layers // 2 - 1,),
        regions=regions,
        alpha=np.full(targets, 1e-6) if name == "cubes" else np.zeros(targets),
        skills=("nothing",) * targets,
        refusal=np.array(REFUSAL),
        positions=positions,
    )


if __name__ == "__main__":
    main()
