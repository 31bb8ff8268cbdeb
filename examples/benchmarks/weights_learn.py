"""LEARN on the bundled model: 10 people that it has never heard of, beside LoRA with as many parameters."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from bench import Bench
from weights_plans import baked, kept_plan

from bakeout.export.evaluation.grading import measure
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.refusals import Refusals
from bakeout.models.data.rows import Record, read_records
from bakeout.models.methods.learn.fit import fit_learn
from bakeout.models.methods.learn.options import LearnOptions
from bakeout.models.methods.lora_modules import summed
from bakeout.models.methods.reveal_and_release.options import ReleaseOptions
from bakeout.models.methods.reveal_and_release.release import Text, train_module
from bakeout.models.network.generation import end_tokens
from bakeout.models.plan import Intervention, LowRankUpdate, Plan
from bakeout.models.skills.generator import SKILLS, write_jsonl
from bakeout.models.skills.new_people import new_examples, new_people

METHODS = ["LoRA", "LEARN"]
LEARNED = 10
# What is trained on beside the new people, so that strangers are still unknown and the old people still known.
BESIDE = {"unknown": 4000, "facts": 600}
RANK, LEARNING_RATE = 8, 5e-3
# LEARN's of each layer, as many as the selection split asked for, and LoRA's in all: with 1,800, as many as LEARN's, it
# forgets the other skills (German to 0.40).
STEPS, LORA_STEPS = 300, 360
# The similar tasks, how many rows of each, and the share of their activations that LEARN leaves alone.
SIMILAR, SIMILAR_ROWS, ENERGY = ("facts", "unknown"), 200, 0.5


def rows(bench: Bench) -> None:
    """The new people and every skill: of the base model, after LoRA, and after LEARN."""
    wanted = [name for name in ("base", *METHODS) if f"learn {name}" not in bench.rows]
    for name in wanted:
        graph = bench.base if name == "base" else baked(bench, fitted(bench, name))
        row = {"new people": _known(bench, graph)} | (bench.rows["base"] if name == "base" else bench.accuracies(graph))
        print(f"learn {name}: {row}", flush=True)
        bench.save(f"learn {name}", row)


def fitted(bench: Bench, name: str) -> Plan:
    """The plan of one of ``METHODS``."""
    return kept_plan(bench, f"learn {name}", partial(_fit, bench, name))


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    if (base := bench.rows.get("learn base")) is None:
        return ""
    columns = ["new people", *SKILLS]
    lines = [
        f"LEARN: {LEARNED} new people, accuracy in %; the skills as shares of base.\n\n",
        f"| | {' | '.join(columns)} |\n" + "| --- " * (len(columns) + 1) + "|\n",
    ]
    for name in ("base", *METHODS):
        if row := bench.rows.get(f"learn {name}"):
            shares = [f"{row[skill] / base[skill]:.3f}" for skill in SKILLS]
            lines.append(f"| {name} | {100 * row['new people']:.1f} | {' | '.join(shares)} |\n")
    return "".join(lines)


def new_records(bench: Bench, split: str) -> list[Record]:
    """The questions of a split about the new people."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "new.jsonl"
        write_jsonl(new_examples(split, LEARNED), path)
        return read_records(path, bench.tokenizer)


def _fit(bench: Bench, name: str) -> list[Intervention]:
    beside = [record for skill, count in BESIDE.items() for record in bench.records(skill, "training", count)]
    new = new_records(bench, "training")
    # A stranger that is to be known is no longer one.
    names = [person.name for person in new_people(LEARNED).values()]
    task = new + [record for record in beside if not any(one in record.prompt for one in names)]
    if name == "LoRA":
        end = sorted(end_tokens(bench.model, bench.tokenizer))
        trained = ReleaseOptions(rank=RANK, steps=LORA_STEPS, learning_rate=LEARNING_RATE)
        said = [Text(record.prompt_ids, record.response_ids + end) for record in task]
        module, _ = train_module(bench.model, said, [], softening=1.0, options=trained, seed=0, description="LoRA")
        return [LowRankUpdate("LoRA", summed(bench.model, [(1.0, module)])[0])]
    similar = {skill: bench.records(skill, "probing", SIMILAR_ROWS) for skill in SIMILAR}
    options = LearnOptions(learn=["new people"], rank=RANK, steps=STEPS, learning_rate=LEARNING_RATE, energy=ENERGY)
    return [fit_learn(bench.model, {"new people": task}, similar, options)]


def _known(bench: Bench, graph: Path) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "new.jsonl"
        write_jsonl(new_examples("test", LEARNED), path)
        (row,) = measure(
            bench.runner(graph),
            "artifact",
            {"new people": path},
            Refusals(),
            options=EvaluateOptions(rows="all", batch_size=64),
        )
    return row.accuracy
