r"""Graphs in × precision × runtimes out: which artifacts give the same tokens everywhere, and why others are refused.

    PYTHONPATH=. python examples/benchmarks/graph_runtimes.py --output runs/benchmarks/graph_runtimes \
        --transformers5 PYTHON --genai18 PYTHON

A tiny random Llama as every exporter writes it, with Neuron Adjust and Key Space Detection baked in. In the column
onnxruntime, fp32 and fp16 are held against the PyTorch reference, token for token over 24 prompts, and quantised graphs
against the plan's formulas on their own values; every other runtime must give the tokens of that column.
``--transformers5`` is a Python with transformers 5.13 or later, ``--genai18`` one with onnxruntime-genai 0.18,
transformers 5 and mobius-onnx; without them their graphs and cells are told as not run. Stops and resumes: finished
rows lie in ``<output>``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from comparison import print_table

from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.baking.bake import Baked, bake
from bakeout.export.baking.runtimes import require_pairs_served, require_served
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions, RuntimeName
from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.export.verification.formulas import check_formulas
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.progress import untracked

from tests.baked_parity import compare, key_space_detection, neuron_adjust, plan_of
from tests.exported_graphs import HALF, PROMPTS, holds
from tests.runtimes.javascript import installed
from tests.tiny_models import tiny_checkpoint

HERE = Path(__file__).parent
GRAPHS = ("optimum", "dynamo", "transformers.exporters", "genai builder 0.13.2", "genai builder 0.18", "mobius")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
RUNTIMES: Mapping[str, RuntimeName] = {
    "onnxruntime": "onnxruntime",
    "optimum": "optimum",
    "genai 0.13.2": "genai",
    "genai 0.18": "genai",
    "Node": "node",
    "web (wasm)": "web",
    "OpenVINO": "openvino",
}
LONGEST, ASKED = 10, 6
HIDDEN, HEAD = 64, 16

Answers = list[list[int]]
# What is written in a cell, and why.
Cell = tuple[str, str]
EXACT, NOT_RUN = "exact", "not run"


@dataclass(frozen=True)
class Pythons:
    """The interpreters of other environments, where they were given."""

    transformers5: str | None
    genai18: str | None

    def run(self, python: str | None, *arguments: str | Path, fed: str = "") -> str:
        """What ``other_environments.py`` prints.

        Raises ``NotRunError`` without an interpreter, and ``RuntimeError`` where it fails.
        """
        if python is None:
            raise NotRunError("no Python with this package was given")
        command = [python, str(HERE / "other_environments.py"), *map(str, arguments)]
        return _output(command, fed)


class NotRunError(Exception):
    """What cannot be run here."""


def _output(command: Sequence[str | Path], fed: str, cwd: Path | None = None) -> str:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, input=fed, capture_output=True, text=True, cwd=cwd, env=alone)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(
            next((line for line in reversed(lines) if "rror:" in line), lines[-1] if lines else "nothing told")
        )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def make_graph(graph: str, precision: str, checkpoint: Path, directory: Path, pythons: Pythons) -> str | None:
    """Write an exporter's graph; what is left for ``bake`` to quantise it to."""
    quantised = precision if precision in ("int8", "int4") else None
    stored = "fp16" if precision == "fp16" else "fp32"
    directory.mkdir(parents=True)
    if graph in ("optimum", "dynamo"):
        export_checkpoint(checkpoint, directory, "fp16" if stored == "fp16" else "fp32", exporter=graph)  # type: ignore[arg-type]
    elif graph == "transformers.exporters":
        pythons.run(pythons.transformers5, "pair", checkpoint, directory, stored)
    elif graph == "mobius":
        pythons.run(pythons.genai18, "mobius", checkpoint, directory, stored)
    else:
        # It has an int4 of its own.
        form, quantised = (precision, None) if precision == "int4" else (stored, quantised)
        pythons.run(sys.executable if "0.13" in graph else pythons.genai18, "builder", checkpoint, directory, form)
        # It leaves out what optimum reads.
        shutil.copy(checkpoint / "config.json", directory)
    return quantised


def plan_for(checkpoint: Path, precision: str) -> tuple[Any, Plan]:
    """The reference model of a precision, and a plan for it: values far from where its coin turns."""
    model = load_model(checkpoint, Placement("cpu", "float16" if precision == "fp16" else "float32")).float()
    adjust = neuron_adjust(model, "threshold", PROMPTS, decisive=True)
    return model, plan_of(model, [adjust, key_space_detection(model, (0,), "query", PROMPTS, [adjust])], PROMPTS)


def first_column(model: Any, plan: Plan, source: Path, baked: Baked, precision: str) -> Cell:
    """ONNX Runtime itself: against the PyTorch reference or, quantised, against the formulas."""
    runner = Runner(baked.directory, threads=1)
    if precision in ("fp32", "fp16"):
        parity = compare(model, plan, Runner(source, threads=1), runner, PROMPTS, HALF if precision == "fp16" else 1e-3)
        told = f"{parity.alike} of {parity.prompts} alike, {parity.changed} changed, {parity.refused} refused"
        return (EXACT if holds(parity, "middle", f"x {precision}") else "fails"), told
    ok, told = check_formulas(runner.path, plan, baked.receipts, PROMPTS, untracked)
    return (EXACT if ok else "fails"), told


def asked_of(runner: Runner) -> list[list[int]]:
    """Half refused and half answered prompts, of each those whose tokens are least of all decided by rounding."""
    answers = runner.generate_with_logits(PROMPTS, LONGEST, batch_size=1)
    sure = []
    for prompt, (_, logits) in zip(PROMPTS, answers, strict=True):
        second, best = np.sort(logits, axis=1)[:, -2:].T
        sure.append((bool(is_refused(logits[0])), float((best - second).min()), prompt))
    kinds = [sorted(answer for answer in sure if answer[0] == refused) for refused in (True, False)]
    return [prompt for kind in kinds for _, _, prompt in kind[-ASKED // 2 :]]


def openvino_answers(directory: Path, prompts: list[list[int]], ends: list[int]) -> Answers:
    """Greedy answers by OpenVINO's own runtime."""
    try:
        openvino = import_module("openvino")
    except ImportError:
        raise NotRunError("openvino is not installed") from None
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    graphs = graphs_of(Runner(directory, threads=1).path)
    requests = [core.compile_model(core.read_model(path), "CPU", exact).create_infer_request() for path in graphs]
    return [_openvino_answer(requests, prompt, ends) for prompt in prompts]


def _openvino_answer(requests: Sequence[Any], prompt: list[int], ends: list[int]) -> list[int]:
    said: list[int] = []
    request, ids, cache = requests[0], np.array([prompt]), {}
    total = len(prompt)
    for value in request.model_inputs:
        if (name := value.get_any_name()).startswith("past"):
            dtype = np.float16 if "16" in str(value.element_type) else np.float32
            cache[name] = np.zeros((1, value.partial_shape[1].get_length(), 0, HEAD), dtype)
    while len(said) < LONGEST and not set(said) & set(ends):
        fed = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - ids.shape[1], total)[None],
        }
        names = {value.get_any_name() for value in request.model_inputs}
        outputs = request.infer({**{name: value for name, value in fed.items() if name in names}, **cache})
        by_name = {output.get_any_name(): value.copy() for output, value in outputs.items()}
        cache = {
            (
                f"input.{name.removeprefix('output.')}"
                if "cache." in name
                else name.replace("present", "past_key_values")
            ): value
            for name, value in by_name.items()
            if name.startswith(("present", "output.cache", "cache."))
        }
        said.append(int(by_name["logits"][0, -1].argmax()))
        request, ids, total = requests[-1], np.array([said[-1:]]), total + 1
    return said


def optimum_answers(directory: Path, prompts: list[list[int]], ends: list[int]) -> Answers:
    """Greedy answers by optimum's ``generate``."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(directory)
    answers = []
    for prompt in prompts:
        said = model.generate(torch.tensor([prompt]), max_new_tokens=LONGEST, do_sample=False, eos_token_id=ends)
        answers.append(said[0, len(prompt) :].tolist())
    return answers


def javascript_answers(library: str, directory: Path, prompts: list[list[int]], ends: list[int]) -> Answers:
    """Greedy answers in Node.js, by ONNX Runtime's native library or by that of browsers, compiled to wasm."""
    try:
        place = installed("browser" if library.endswith("web") else "node")
    except pytest.skip.Exception as error:
        raise NotRunError(str(error)) from None
    shutil.copy(HERE / "decode.mjs", place)
    graphs = [path.name for path in graphs_of(Runner(directory, threads=1).path)]
    request = {"graphs": graphs, "prompts": prompts, "longest": LONGEST, "ends": ends, "head": HEAD}
    answers: Answers = json.loads(
        _output(["node", "decode.mjs", library, directory.resolve()], json.dumps(request), place)
    )
    return answers


def answers_of(runtime: str, directory: Path, prompts: list[list[int]], ends: list[int], pythons: Pythons) -> Answers:
    """What a runtime answers."""
    if runtime.startswith("genai"):
        python = sys.executable if "0.13" in runtime else pythons.genai18
        answers: Answers = json.loads(
            pythons.run(python, "genai", directory.resolve(), str(LONGEST), fed=json.dumps(prompts))
        )
        return answers
    if runtime in ("Node", "web (wasm)"):
        return javascript_answers(f"onnxruntime-{RUNTIMES[runtime]}", directory, prompts, ends)
    loop: Callable[[Path, list[list[int]], list[int]], Answers] = (
        optimum_answers if runtime == "optimum" else openvino_answers
    )
    return loop(directory, prompts, ends)


def require_runtime(runtime: str, directory: Path) -> None:
    """Raise ``BakeoutError`` where ``bake --runtime`` refuses the artifact's graph."""
    name = RUNTIMES[runtime]
    graphs = graphs_of(Runner(directory, threads=1).path)
    if len(graphs) > 1:
        require_pairs_served(BakeOptions(runtimes=(name,)))
    for graph in graphs:
        require_served((name,), load_graph(graph), {path.name for path in directory.iterdir()})


def cell(runtime: str, directory: Path, prompts: list[list[int]], expected: Answers, pythons: Pythons) -> Cell:
    """One runtime's cell."""
    ends = [tokens[-1] for tokens in expected if len(tokens) < LONGEST][:1]
    try:
        require_runtime(runtime, directory)
        answers = answers_of(runtime, directory, prompts, ends, pythons)
    except BakeoutError as error:
        return "refused", error.cause
    except NotRunError as error:
        return NOT_RUN, str(error)
    # Runtimes have errors of many classes.
    except Exception as error:  # noqa: BLE001
        return "fails", f"{runtime}: {(str(error).strip().splitlines() or [type(error).__name__])[-1][:200]}"
    alike = sum(own == other for own, other in zip(answers, expected, strict=True))
    return (EXACT if alike == len(prompts) else "fails"), f"{alike} of {len(prompts)} alike"


def measured(graph: str, precision: str, checkpoint: Path, work: Path, pythons: Pythons) -> dict[str, Cell]:
    """A row of the table. Raises ``NotRunError`` or another error where there is no artifact."""
    quantised = make_graph(graph, precision, checkpoint, work / "graph", pythons)
    model, plan = plan_for(checkpoint, precision)
    options = BakeOptions(inline=True, quantize=quantised)
    baked = bake(work / "graph", plan, work / "baked", options, canary=False)
    runner = Runner(baked.directory, threads=1)
    prompts = asked_of(runner)
    expected = runner.generate(prompts, LONGEST, batch_size=1)
    row = {"onnxruntime": first_column(model, plan, work / "graph", baked, precision)}
    for runtime in [name for name in RUNTIMES if name not in row]:
        row[runtime] = cell(runtime, baked.directory, prompts, expected, pythons)
    return row


def row_of(graph: str, precision: str, checkpoint: Path, output: Path, pythons: Pythons) -> dict[str, Cell]:
    """A row of the table, measured unless it is there already."""
    saved = output / f"{graph} {precision}.json"
    if saved.exists():
        kept: dict[str, Cell] = json.loads(saved.read_text())
        return kept
    with tempfile.TemporaryDirectory() as scratch:
        try:
            row = measured(graph, precision, checkpoint, Path(scratch), pythons)
        except NotRunError as error:
            return dict.fromkeys(RUNTIMES, (NOT_RUN, str(error)))
        except BakeoutError as error:
            row = dict.fromkeys(RUNTIMES, ("refused", str(error)))
        except RuntimeError as error:
            return dict.fromkeys(RUNTIMES, ("fails", str(error)))
    saved.write_text(json.dumps(row, indent=1))
    print(f"{graph} {precision}: {row}", flush=True)
    return row


def _lines(rows: Mapping[tuple[str, str], dict[str, Cell]], causes: list[str]) -> Iterator[list[str]]:
    for (graph, precision), row in rows.items():
        cells = []
        for what, why in (row[runtime] for runtime in RUNTIMES):
            if what != EXACT and why not in causes:
                causes.append(why)
            cells.append("yes" if what == EXACT else f"{what} ({causes.index(why) + 1})")
        yield [graph, precision, *cells]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows are kept.")
@click.option("--transformers5", help="The Python of an environment with transformers 5.13 or later.")
@click.option("--genai18", help="The Python of one with onnxruntime-genai 0.18, transformers 5 and mobius-onnx.")
@click.option("--graph", "graphs", multiple=True, type=click.Choice(GRAPHS), default=GRAPHS, help="These alone.")
def main(output: Path, transformers5: str | None, genai18: str | None, graphs: tuple[str, ...]) -> None:
    """Run every cell that can be run here, and print the table and the causes."""
    checkpoint = output / "checkpoint"
    if not checkpoint.exists():
        tiny_checkpoint("llama", checkpoint, layers=2, hidden=HIDDEN)
    pythons = Pythons(transformers5, genai18)
    rows = {
        (graph, precision): row_of(graph, precision, checkpoint, output, pythons)
        for graph in graphs
        for precision in PRECISIONS
    }
    causes: list[str] = []
    print_table(["graph", "precision", *RUNTIMES], _lines(rows, causes))
    for number, cause in enumerate(causes, start=1):
        print(f"\n{number}. {cause}")
    told = [what for row in rows.values() for what, _ in row.values()]
    run = len(told) - told.count(NOT_RUN)
    print(f"\n{told.count(EXACT)} of {run} cells exact ({100 * told.count(EXACT) / max(run, 1):.0f} %), ", end="")
    print(f"{told.count('refused')} refused, {told.count('fails')} fail; {told.count(NOT_RUN)} not run here")


if __name__ == "__main__":
    main()
