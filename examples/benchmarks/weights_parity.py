"""Parity: the baked checkpoint in ``transformers`` and the ONNX artifact in ONNX Runtime say the same tokens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import weights_learn
from bench import Bench
from weights_forgotten import forgotten
from weights_plans import baked

from bakeout.export.baking.bake import bake
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.network.generation import continue_prompts, end_tokens
from bakeout.models.plan import Plan
from bakeout.models.skills.generator import SKILLS

# Prompts about what was forgotten, and prompts of all skills together.
FORGOTTEN, OTHERS = 100, 100
NEW_TOKENS = 16
# The bundled checkpoint is stored in half precision, the graph in float32: the same edit is rounded to either.
TYPES = ("float32", "float16")
_PREFIX = "parity "


def rows(bench: Bench) -> None:
    """For each method and stored type: equal answers of both, and how many are other than the base model's."""
    for method, plan, prompts in _plans(bench):
        if (key := f"{_PREFIX}{method}") in bench.rows:
            continue
        graph = bench.runner(baked(bench, plan)).generate(prompts, NEW_TOKENS)
        base = bench.runner(bench.base).generate(prompts, NEW_TOKENS)
        changed = [one != other for one, other in zip(graph[:FORGOTTEN], base, strict=False)]
        row = {"prompts": len(prompts), "changed": sum(changed) / len(changed)}
        for dtype in TYPES:
            said = _from_checkpoint(bench, plan, dtype, prompts)
            row[dtype] = sum(one == other for one, other in zip(said, graph, strict=True))
        print(f"{key}: {row}", flush=True)
        bench.save(key, row)


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    found = {key.removeprefix(_PREFIX): row for key, row in bench.rows.items() if key.startswith(_PREFIX)}
    lines = [
        "The baked checkpoint in `transformers` against the ONNX artifact (float32) in ONNX Runtime: answers equal to "
        "the token.\n\n",
        "| method | prompts | float32 checkpoint | float16 checkpoint | other than base, of the forget prompts |\n",
        "| --- " * 5 + "|\n",
    ]
    for method, row in found.items():
        equal = " | ".join(str(row[dtype]) for dtype in TYPES)
        lines.append(f"| {method} | {row['prompts']} | {equal} | {row['changed']:.0%} |\n")
    return "".join(lines) if found else ""


def _plans(bench: Bench) -> Iterator[tuple[str, Plan, list[list[int]]]]:
    """Each method's plan, and prompts: first those about what it changes."""
    each = OTHERS // len(SKILLS) + 1
    of_all = [record.prompt_ids for skill in SKILLS for record in bench.records(skill, "test", each)]
    for one in forgotten(bench):
        about = [record.prompt_ids for record in one.asked[:FORGOTTEN]]
        yield one.method, one.plan(), about + of_all[:OTHERS]
    new = [record.prompt_ids for record in weights_learn.new_records(bench, "test")]
    yield "LEARN", weights_learn.fitted(bench, "LEARN"), new[:: len(new) // FORGOTTEN][:FORGOTTEN] + of_all[:OTHERS]


def _from_checkpoint(bench: Bench, plan: Plan, dtype: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What ``transformers`` says with the baked checkpoint, computing in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "base"
        shutil.copytree(bench.checkpoint, checkpoint)
        if dtype == "float32":
            bench.model.save_pretrained(checkpoint)
        digest = weights_digest(checkpoint)
        of_checkpoint = replace(plan, model=replace(plan.model, digest=digest))
        bake(checkpoint, of_checkpoint, Path(scratch) / "baked", BakeOptions(to="safetensors"))
        model = load_model(Path(scratch) / "baked")
        said = continue_prompts(
            model, prompts, end=end_tokens(model, bench.tokenizer), max_new_tokens=NEW_TOKENS, batch_size=50
        )
    return [one.ids for one in said]
