"""How much memory do fit, export, bake and verify take, beside the weights in float16?

    python examples/benchmarks/half_precision.py MODEL FORGET.jsonl RETAIN.jsonl DIRECTORY

Each stage runs in a process of its own. Both graph methods are fitted in float16, on the first rows of each file, and
baked into a graph in fp16, which is verified with the base model in float32 beside it. ``DIRECTORY`` keeps what is
finished: its ``stages.json`` says what each stage took, and none is repeated.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from comparison import print_machine, print_table
from own_process import in_a_process_of_its_own

from bakeout.models.files.writing import replace_file

INTERVENTIONS: list[dict[str, Any]] = [
    {"neuron_adjust": {"forget": "forget", "ratio": 0.03}},
    # Few queries: a processor without float16 arithmetic computes these products at a fraction of float32's speed.
    {"key_space_detection": {"forget": "forget", "epsilon": 0.2, "augment": [], "everyday": False}},
]
PLAN, ARTIFACT, STAGES = "plan.safetensors", "artifact", "stages.json"
FILE = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("model", type=FILE)
@click.argument("forget", type=FILE)
@click.argument("retain", type=FILE)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--rows", default=100, show_default=True, help="Rows of each file.")
def main(model: Path, forget: Path, retain: Path, directory: Path, rows: int) -> None:
    """Print each stage's time and peak of resident memory."""
    directory.mkdir(parents=True, exist_ok=True)
    data = {"forget": directory.resolve() / "forget.jsonl", "retain": directory.resolve() / "retain.jsonl"}
    for path, source in zip(data.values(), (forget, retain), strict=True):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:rows]), encoding="utf-8")
    recipe = {
        "model": str(model.resolve()),
        "dtype": "float16",
        "data": {name: str(path) for name, path in data.items()},
        "interventions": INTERVENTIONS,
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    print_machine("torch", "transformers", "onnxruntime-gpu")
    print_table(["in a process of its own", "s", "peak resident, MiB", "beside fp16 weights"], _rows(directory, model))


def _rows(directory: Path, model: Path) -> Iterator[list[str]]:
    size = 2 * _numbers(model)
    finished = directory / STAGES
    taken: dict[str, list[float]] = json.loads(finished.read_text()) if finished.exists() else {}
    for name, stage in {"fit": _fit, "export": _export, "bake": _bake, "verify, parity too": _verify}.items():
        if name not in taken:
            taken[name] = list(in_a_process_of_its_own(stage, directory, model))
            replace_file(finished, json.dumps(taken, indent=1).encode())
        seconds, peak = taken[name]
        yield [name, f"{seconds:.0f}", f"{peak / 2**20:.0f}", f"{peak / size:.2f}"]


def _numbers(model: Path) -> int:
    """The numbers that the weights of a checkpoint are."""
    from safetensors import safe_open

    count = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            names: list[str] = list(file.keys())
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return count


def _fit(directory: Path, _model: Path) -> None:
    from bakeout.export.fitting.fit import fit
    from bakeout.export.recipes.recipe import load_recipe
    from bakeout.models.plan.plan_file import plan_bytes

    replace_file(directory / PLAN, plan_bytes(fit(load_recipe(directory / "recipe.yaml"))))


def _export(directory: Path, model: Path) -> None:
    from bakeout.export.exporting.onnx_export import export_checkpoint

    exported = directory / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    exported.mkdir()
    export_checkpoint(model, exported, "fp16")
    shutil.rmtree(exported)


def _bake(directory: Path, model: Path) -> None:
    from bakeout.export.baking.bake import bake
    from bakeout.export.recipes.bake_options import BakeOptions
    from bakeout.models.plan.plan_file import load_plan

    shutil.rmtree(directory / ARTIFACT, ignore_errors=True)
    bake(model, load_plan(directory / PLAN), directory / ARTIFACT, BakeOptions(dtype="fp16"))


def _verify(directory: Path, model: Path) -> None:
    from bakeout.export.verification.verify import verify
    from bakeout.models.data.rows import read_records
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer

    # Without queries that are refused, parity would prove no refusal.
    asked = [record.prompt_ids for record in read_records(directory / "forget.jsonl", load_tokenizer(model))[:4]]
    for check in verify(directory / ARTIFACT, base=model, prompts=asked):
        print(f"{'ok' if check.ok else 'NOT OK'} {check.name}: {check.detail}")


if __name__ == "__main__":
    main()
