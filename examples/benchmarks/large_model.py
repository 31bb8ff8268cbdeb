"""From a checkpoint to a verified graph: 16 GB of bfloat16 shards in the shape of Llama-3-8B, each graph kind in turn.

    python examples/benchmarks/large_model.py DIR

DIR needs room for the checkpoint twice, and a little more. Stages that are finished are not repeated: what they took
stands in ``DIR/stages.json``, and their files in DIR. An artifact is removed once its canary has run. ``--layers 4``
is the same with layers of the same size, in 3 GB.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from comparison import print_machine, print_table
from own_process import in_a_process_of_its_own
from random_llama import Shape, key_space_detection, neuron_adjust, plan_of
from size import LLAMA_3_8B
from weights_size import write_wide_checkpoint

from bakeout.models.files.writing import replace_file

if TYPE_CHECKING:
    from bakeout.models.plan import Intervention

CHECKPOINT, ARTIFACT, STAGES = "checkpoint", "artifact", "stages.json"
SEQUENCES, TOKENS = 4, 16


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--layers", default=LLAMA_3_8B.layers, show_default=True)
def main(directory: Path, layers: int) -> None:
    """Measure the time and the peak of resident memory of every stage, each in a process of its own."""
    shape = replace(LLAMA_3_8B, layers=layers)
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / CHECKPOINT).exists():
        unfinished = directory / f"{CHECKPOINT}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_wide_checkpoint(unfinished, shape, sparse=False)
        unfinished.rename(directory / CHECKPOINT)
    size = sum(path.stat().st_size for path in (directory / CHECKPOINT).glob("*.safetensors"))
    print_machine("torch", "transformers", "onnxruntime-gpu")
    print(f"{shape}, {size / 2**30:.1f} GiB in bf16\n")
    columns = ["in a process of its own", "s", "beside copying", "peak resident, MiB", "beside the weights"]
    print_table(columns, _rows(directory, shape, size))


def _rows(directory: Path, shape: Shape, size: int) -> Iterator[list[str]]:
    finished = directory / STAGES
    taken: dict[str, list[float]] = json.loads(finished.read_text()) if finished.exists() else {}
    copying = 0.0
    for name, (stage, *arguments) in _stages().items():
        if name not in taken:
            taken[name] = list(in_a_process_of_its_own(stage, directory, shape, *arguments))
            replace_file(finished, json.dumps(taken, indent=1).encode())
        seconds, peak = taken[name]
        copying = copying or seconds
        yield [name, f"{seconds:.0f}", f"{seconds / copying:.1f}", f"{peak / 2**20:.0f}", f"{peak / size:.2f}"]


def _stages() -> dict[str, tuple[Callable[..., object], ...]]:
    stages: dict[str, tuple[Callable[..., object], ...]] = {
        "copying and hashing the checkpoint alone": (_copy_and_hash,)
    }
    for kind, interventions in _KINDS.items():
        stages[f"{kind}: plan, its canary measured"] = (_write_plan, interventions)
        stages[f"{kind}: `bake`, with the export in fp16 and the canary"] = (_bake, interventions)
        stages[f"{kind}: `verify`, files, graph and canary"] = (_verify, interventions)
    return stages


def _copy_and_hash(directory: Path, _shape: Shape) -> None:
    from bakeout.models.files.copying import copy_by_kernel
    from bakeout.models.files.hashing import hash_file

    copy = directory / "copy"
    for path in sorted((directory / CHECKPOINT).iterdir()):
        copy_by_kernel(path, copy)
        hash_file(copy)
        copy.unlink()


def _write_plan(directory: Path, shape: Shape, interventions: Callable[[Shape], list[Intervention]]) -> None:
    """A plan of made-up interventions whose canary is measured on the checkpoint in float16."""
    from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
    from bakeout.models.checkpoint.placement import Placement
    from bakeout.models.plan import Canary
    from bakeout.models.plan.plan_file import plan_bytes
    from bakeout.models.reference.canary import canary_values

    applied = interventions(shape)
    model = load_model(directory / CHECKPOINT, Placement("cpu", "float16"))
    ids = np.random.default_rng(0).integers(2, shape.vocabulary, (SEQUENCES, TOKENS))
    canary = Canary(ids, canary_values(model, applied, ids))
    plan = plan_of(shape, *applied)
    plan = replace(plan, model=replace(plan.model, digest=weights_digest(directory / CHECKPOINT)), canary=canary)
    replace_file(_plan_file(directory, interventions), plan_bytes(plan))


def _bake(directory: Path, _shape: Shape, interventions: Callable[[Shape], list[Intervention]]) -> None:
    from bakeout.export.baking.bake import bake
    from bakeout.export.recipes.bake_options import BakeOptions
    from bakeout.models.plan.plan_file import load_plan

    shutil.rmtree(directory / ARTIFACT, ignore_errors=True)
    plan = load_plan(_plan_file(directory, interventions))
    bake(directory / CHECKPOINT, plan, directory / ARTIFACT, BakeOptions(dtype="fp16"))


def _verify(directory: Path, _shape: Shape, _interventions: Callable[[Shape], list[Intervention]]) -> None:
    from bakeout.export.verification.verify import verify

    checks = verify(directory / ARTIFACT, checks=("files", "graph", "canary"))
    if wrong := [check for check in checks if not check.ok]:
        raise SystemExit(f"{wrong[0].name}: {wrong[0].detail}")
    shutil.rmtree(directory / ARTIFACT)


def _plan_file(directory: Path, interventions: Callable[[Shape], list[Intervention]]) -> Path:
    return directory / f"{interventions.__name__.strip('_')}.safetensors"


def _adjusted(shape: Shape) -> list[Intervention]:
    return [neuron_adjust(shape.layers, shape.width, "threshold")]


def _detecting(shape: Shape) -> list[Intervention]:
    return [key_space_detection(shape, refuses=False, layer=shape.layers // 2 - 1)]


_KINDS: dict[str, Callable[[Shape], list[Intervention]]] = {
    "Neuron Adjust of 3 %": _adjusted,
    "Key Space Detection": _detecting,
}


if __name__ == "__main__":
    main()
