"""What becomes of forgetting when the model is stored otherwise: the skills in fp32, fp16, int8 and int4.

    python examples/benchmarks/precisions.py --output runs/benchmarks/precisions

The plans are fitted once, on the model in float32, and baked into the export in fp32 and fp16, into the former with its
weights then quantised to int8, and into the int4 graph of onnxruntime-genai's builder. Figures as in ``skills.py``;
stops and resumes likewise.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import click
from bench import Bench
from builder_graph import build
from comparison import print_table

from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.baking.bake import bake
from bakeout.export.baking.quantise import quantise
from bakeout.export.evaluation.grading import measure
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.network.probing import probe_keys, probe_neurons
from bakeout.models.plan import Intervention, Plan
from bakeout.models.plan.plan_file import load_plan, save_plan
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS, examples, write_jsonl
from bakeout.models.skills.tokenizer import REFUSAL

PRECISIONS = ("fp32", "fp16", "int8", "int4")
FORGOTTEN = "math"
QUERIES = 3000
# Prompts that share a batch share the scale that their data are quantised by in the int8 graph: there, one by one.
BATCH = {"fp32": 32, "fp16": 32, "int8": 1, "int4": 32}


def key_space_detection(bench: Bench) -> Intervention:
    """Math in 32 cubes of layer 0, as chosen by ``skills.py``."""
    keys = {
        split: probe_keys(
            bench.model, [one.prompt_ids for one in bench.records(FORGOTTEN, split, QUERIES)], layers=[0], batch_size=64
        )
        for split in ("probing", "calibration")
    }
    return fit_key_space_detection(
        {FORGOTTEN: keys["probing"]},
        {FORGOTTEN: keys["calibration"]},
        {},
        KeySpaceDetectionOptions(forget=FORGOTTEN, layers=[0], cubes=32, floor=1.0),
        refusal=refusal_tokens(REFUSAL, bench.tokenizer, bench.ends),
    )


def neuron_adjust(bench: Bench) -> Intervention:
    """Math at beta 30 %, with the coin ``threshold``."""
    forget = bench.records(FORGOTTEN, "probing")
    retain = [one for skill in SKILLS if skill != FORGOTTEN for one in bench.records(skill, "probing")]
    options = NeuronAdjustOptions(forget=FORGOTTEN, ratio=0.3)
    forget_statistics, retain_statistics = (
        probe_neurons(bench.model, records, batch_size=64) for records in (forget, retain)
    )
    return fit_neuron_adjust(forget_statistics, retain_statistics, options)


INTERVENTIONS = {"Key Space Detection": key_space_detection, "Neuron Adjust, β 30 %": neuron_adjust}


def plans(bench: Bench) -> dict[str, Plan]:
    """The plans, fitted on the first run."""
    found = {}
    prompts = [one.prompt_ids for one in bench.records(FORGOTTEN, "probing", 64)]
    for name, fitted in INTERVENTIONS.items():
        path = bench.output / f"{fitted.__name__}.safetensors"
        if not path.exists():
            save_plan(bench.plan(fitted(bench), prompts), path)
        found[name] = load_plan(path)
    return found


def unbaked(bench: Bench, precision: str) -> Path:
    """The graph of a precision without interventions, made on the first run."""
    directory = bench.output / precision
    if precision == "fp32":
        return bench.base
    if directory.exists():
        return directory
    if precision == "int4":
        return build(bench.checkpoint, directory, "int4")
    directory.mkdir()
    if precision == "fp16":
        export_checkpoint(bench.checkpoint, directory, "fp16")
    else:
        quantise(load_graph(bench.base / "model.onnx"), directory)
        for path in companion_files(bench.base):
            shutil.copy(path, directory)
    return directory


def baked(bench: Bench, precision: str, plan: Plan) -> Path:
    """The artifact of a precision."""
    directory = bench.output / "artifact"
    shutil.rmtree(directory, ignore_errors=True)
    options = BakeOptions(quantize="int8" if precision == "int8" else None)
    return bake(bench.base if precision == "int8" else unbaked(bench, precision), plan, directory, options).directory


def measured(bench: Bench, files: dict[str, Path]) -> None:
    """Measure every precision, unbaked and baked, that has no row yet."""
    fitted = plans(bench)
    for precision in PRECISIONS:
        for name in ("none", *fitted):
            if (key := f"{precision} {name}") in bench.rows:
                continue
            graph = unbaked(bench, precision) if name == "none" else baked(bench, precision, fitted[name])
            rows = measure(
                Runner(graph, threads=1),
                key,
                files,
                Refusals(),
                options=EvaluateOptions(rows="all", batch_size=BATCH[precision]),
            )
            bench.save(key, {row.data: row.accuracy for row in rows})
            print(f"{key}: {bench.rows[key]}", flush=True)


def table(bench: Bench) -> Iterator[list[str]]:
    """Accuracy in percent; the distance of what is forgotten from its fp32 figure; the least kept of another skill."""
    for precision in PRECISIONS:
        base = bench.rows[f"{precision} none"]
        for name in ("none", *INTERVENTIONS):
            row = bench.rows[f"{precision} {name}"]
            figures = [f"{100 * row[skill]:.1f}" for skill in SKILLS]
            if name == "none":
                yield [precision, name, *figures, "", ""]
                continue
            points = 100 * (row[FORGOTTEN] - bench.rows[f"fp32 {name}"][FORGOTTEN])
            least = min((row[skill] / base[skill], skill) for skill in SKILLS if skill != FORGOTTEN)
            figures[SKILLS.index(FORGOTTEN)] = f"**{figures[SKILLS.index(FORGOTTEN)]}**"
            yield [precision, name, *figures, f"{points:+.1f}", f"{least[0]:.3f} ({least[1]})"]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows and graphs are kept.")
@click.option("--prompts", default=1000, show_default=True, help="Test prompts a skill.")
def main(output: Path, prompts: int) -> None:
    """Measure, and print the table."""
    bench = Bench(output, checkpoint_directory())
    files = {skill: output / f"{skill}.{prompts}.jsonl" for skill in SKILLS}
    for skill, path in files.items():
        write_jsonl(examples(skill, "test", prompts), path)
    measured(bench, files)
    header = ["precision", "baked", *SKILLS, f"{FORGOTTEN}, points from fp32", "least kept of another skill"]
    print_table(header, table(bench))


if __name__ == "__main__":
    main()
