"""Baking weight edits into a large checkpoint: 16 GB of bfloat16 shards in the shape of Llama-3-8B.

    python examples/benchmarks/weights_size.py --directory DIR

Beside it, in the same run: copying the shards and hashing the copy, as the least that an artifact of this size takes.
DIR needs room for the checkpoint twice; what is made there is removed again. The shards hold random numbers; with
``--sparse`` they are holes, which take no room and no time to copy, but as long to hash.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import ml_dtypes
import numpy as np
from comparison import print_machine, print_table
from own_process import in_a_process_of_its_own
from random_llama import Shape, plan_of
from size import LLAMA_3_8B

if TYPE_CHECKING:
    from bakeout.models.plan import Intervention

SHARD = 5_000_000_000
RANK = 16
# Numbers written over and over, each time from another place on.
BLOCK = 1 << 24


@click.command()
@click.option("--layers", default=LLAMA_3_8B.layers, show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), help="Where the files go; by default a temporary one.")
@click.option("--sparse", is_flag=True, help="Shards of holes instead of numbers.")
def main(layers: int, directory: Path | None, sparse: bool) -> None:
    """Measure the time and the peak of resident memory that baking weight edits into a checkpoint takes."""
    from bakeout.models.checkpoint.checkpoint_files import weights_digest

    shape = replace(LLAMA_3_8B, layers=layers)
    print_machine("numpy", "safetensors")
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        base = Path(temporary) / "base"
        size = write_wide_checkpoint(base, shape, sparse=sparse)
        (Path(temporary) / "digest").write_text(weights_digest(base))
        shards = len(list(base.glob("*.safetensors")))
        print(f"{shape}, bf16, {size / 2**30:.1f} GiB in {shards} shards{', sparse' if sparse else ''}\n")
        columns = ["in a process of its own", "s", "ratio", "processor, s", "ratio", "peak resident, MiB"]
        print_table(columns, _rows(Path(temporary), shape))


def _rows(directory: Path, shape: Shape) -> Iterator[list[str]]:
    """Processor time, of all threads, says more on a machine that is busy with something else."""
    alone = alone_processor = 0.0
    for name in STAGES:
        seconds, peak = in_a_process_of_its_own(_stage, name, directory, shape)
        processor = float((directory / "processor").read_text())
        alone, alone_processor = alone or seconds, alone_processor or processor
        ratios = f"{seconds / alone:.2f}", f"{processor / alone_processor:.2f}"
        yield [name, f"{seconds:.1f}", ratios[0], f"{processor:.1f}", ratios[1], f"{peak / 2**20:.0f}"]
        shutil.rmtree(directory / "made")


def _stage(name: str, directory: Path, shape: Shape) -> None:
    began = time.process_time()
    STAGES[name](directory, shape)
    (directory / "processor").write_text(str(time.process_time() - began))


def write_wide_checkpoint(directory: Path, shape: Shape, *, sparse: bool) -> int:
    """Write a sharded checkpoint of random bfloat16 weights, and return its size in bytes."""
    directory.mkdir(parents=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, dimensions in _tensors(shape):
        if sum(2 * math.prod(own) for own in shards[-1].values()) + 2 * math.prod(dimensions) > SHARD:
            shards.append({})
        shards[-1][name] = dimensions
    numbers = np.random.default_rng(0).normal(scale=0.02, size=2 * BLOCK).astype(ml_dtypes.bfloat16)
    weight_map, size = {}, 0
    for index, tensors in enumerate(shards):
        file_name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys(tensors, file_name))
        with (directory / file_name).open("wb") as file:
            size += _write_shard(file, tensors, numbers, sparse)
    index_json = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2))
    configuration = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **shape.configuration()}
    (directory / "config.json").write_text(json.dumps(configuration, indent=2))
    return size


def _write_shard(file: BinaryIO, tensors: dict[str, tuple[int, ...]], numbers: np.ndarray, sparse: bool) -> int:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dimensions in tensors.items():
        start, end = end, end + 2 * math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    if sparse:
        file.truncate(8 + len(text) + end)
        return end
    for written in range(0, end, 2 * BLOCK):
        place = written // 97 % BLOCK
        file.write(numbers[place : place + min(BLOCK, (end - written) // 2)].tobytes())
    return end


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = shape.hidden, shape.width
    heads, pairs = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    yield "model.embed_tokens.weight", (shape.vocabulary, hidden)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.mlp.down_proj.weight", (hidden, width)
        yield f"{block}.mlp.gate_proj.weight", (width, hidden)
        yield f"{block}.mlp.up_proj.weight", (width, hidden)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        yield f"{block}.self_attn.k_proj.weight", (pairs, hidden)
        yield f"{block}.self_attn.o_proj.weight", (hidden, heads)
        yield f"{block}.self_attn.q_proj.weight", (heads, hidden)
        yield f"{block}.self_attn.v_proj.weight", (pairs, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocabulary, hidden)


def _copy_and_hash(directory: Path, _shape: Shape) -> None:
    """What ``bake`` does but for the edits: onto the disk, whole or not at all, and hashed, one file after another."""
    from bakeout.models.files.copying import copy_by_kernel
    from bakeout.models.files.hashing import hash_file
    from bakeout.models.files.writing import new_directory

    with new_directory(directory / "made") as made:
        for path in sorted((directory / "base").iterdir()):
            copy_by_kernel(path, made / path.name)
            hash_file(made / path.name)


def _one_layer(directory: Path, shape: Shape) -> None:
    _bake(directory, shape, _update(shape, [22 * shape.layers // 32]))


def _every_layer(directory: Path, shape: Shape) -> None:
    _bake(directory, shape, _pruned(shape), _update(shape, range(shape.layers)))


def _bake(directory: Path, shape: Shape, *interventions: Intervention) -> None:
    from bakeout.export.baking.bake import bake
    from bakeout.export.recipes.bake_options import BakeOptions

    digest = (directory / "digest").read_text()
    plan = plan_of(shape, *interventions)
    plan = replace(plan, model=replace(plan.model, digest=digest))
    bake(directory / "base", plan, directory / "made", BakeOptions(to="safetensors"))


def _update(shape: Shape, layers: range | list[int]) -> Intervention:
    from bakeout.models.plan import LowRankUpdate, WeightUpdate

    random = np.random.default_rng(0)
    return LowRankUpdate(
        "random",
        tuple(
            WeightUpdate(
                layer,
                "down",
                random.normal(scale=0.01, size=(shape.hidden, RANK)).astype(np.float32),
                random.normal(size=(RANK, shape.width)).astype(np.float32),
            )
            for layer in layers
        ),
    )


def _pruned(shape: Shape) -> Intervention:
    from bakeout.models.plan import ZeroColumns, ZeroedColumns

    columns = np.arange(0, shape.width, 67)
    return ZeroColumns(tuple(ZeroedColumns(layer, columns) for layer in range(shape.layers)))


STAGES: dict[str, Callable[[Path, Shape], None]] = {
    "copying and hashing alone": _copy_and_hash,
    f"`bake`: rank {RANK} added in one layer": _one_layer,
    f"`bake`: 1.5 % of all neurons zeroed, and rank {RANK} added in every layer": _every_layer,
}


if __name__ == "__main__":
    main()
