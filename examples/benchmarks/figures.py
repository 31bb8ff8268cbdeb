"""The figures of a report from the rows that ``skills.py`` has measured, and from key vectors that are probed here.

    python examples/benchmarks/figures.py runs/benchmarks/final -o figures.json
    bakeout report DIR --figures figures.json -o report.html

The demo's were made with --add attacks.json: `bakeout attack` on its artifacts, with --positions every.
Shares inside the cubes over alpha, what separates a skill by depth, both methods' trade-offs, the matrix of languages,
and the two methods side by side where they forget about as much, with latency.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from comparison import compare
from skills import DETECTED, LAYERS, QUERIES

from bakeout.export.report.figures_file import (
    Compared,
    Figure,
    Frontier,
    Languages,
    Matched,
    Setting,
    figure,
    figures_json,
    read_figures,
)
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection, margins_of_keys
from bakeout.models.methods.key_space_detection.figures import depth_figure, inside_figures
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.network.families import identity
from bakeout.models.network.generation import named_ends
from bakeout.models.network.probing import probe_keys, probe_neurons
from bakeout.models.plan import Intervention, KeySpaceDetection, Plan
from bakeout.models.reference.canary import measure_canary
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS, examples, write_jsonl
from bakeout.models.skills.tokenizer import REFUSAL

LANGUAGES = ["german", "spanish", "french"]
TESTED = 1000
SOURCE = f"examples/benchmarks/skills.py, {TESTED:,} test prompts a skill"
PROBED = f"examples/benchmarks/figures.py, {TESTED:,} test queries a skill"

Rows = Mapping[str, Any]


class Probed:
    """The bundled model with the key vectors and the cubes that figures are drawn from."""

    def __init__(self) -> None:
        checkpoint = checkpoint_directory()
        self.model = load_model(checkpoint)
        self.tokenizer = load_tokenizer(checkpoint)
        self._keys: dict[tuple[str, str], Any] = {}

    def records(self, skill: str, split: str, count: int) -> list[Record]:
        """Examples of a skill, as the benchmark has them."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{skill}.jsonl"
            write_jsonl(examples(skill, split, count), path)
            return read_records(path, self.tokenizer)

    def keys(self, skill: str, split: str) -> Any:
        """The key vectors of every layer."""
        if (skill, split) not in self._keys:
            records = self.records(skill, split, TESTED if split == "test" else QUERIES[skill])
            prompts = [record.prompt_ids for record in records]
            self._keys[skill, split] = probe_keys(self.model, prompts, layers=LAYERS, batch_size=64)
        return self._keys[skill, split]

    def check(self, skill: str, layers: list[int], cubes: int, floor: float, alpha: float) -> KeySpaceDetection:
        """The cubes that the benchmark fitted."""
        return fit_key_space_detection(
            {skill: self.keys(skill, "probing")},
            {},
            {},
            KeySpaceDetectionOptions(forget=skill, layers=list(layers), cubes=cubes, floor=floor, alpha=alpha),
            refusal=refusal_tokens(REFUSAL, self.tokenizer, named_ends(self.model, self.tokenizer).tokens),
        )


def insides(rows: Rows, probed: Probed) -> Iterator[Figure]:
    """Each skill's cubes in the chosen layers: the share of every skill's test queries inside, over alpha."""
    for skill in DETECTED:
        if (row := rows.get(f"ksd {skill} chosen")) is not None:
            check = probed.check(skill, row["layers"], row["cubes"], row["floor"], row["alpha"])
            margins = {name: margins_of_keys(check, probed.keys(name, "test"), name) for name in SKILLS}
            for drawn in inside_figures(check, margins):
                yield figure(drawn, PROBED)


def depths(probed: Probed) -> Iterator[Figure]:
    """One cube a layer, as in the paper: its volume, how it separates, and who is inside."""
    tested = {name: probed.keys(name, "test") for name in SKILLS}
    for skill in DETECTED:
        yield figure(depth_figure(skill, probed.keys(skill, "probing"), tested), PROBED)


def frontiers(rows: Rows) -> Iterator[Frontier]:
    """Neuron Adjust over beta, for each skill and way of selecting."""
    points: dict[tuple[str, str, str], list[Setting]] = {}
    for key, row in rows.items():
        if key.startswith("na "):
            _, skill, selection, ratio, coin = key.split()
            left = _left(row, rows["base"])
            setting = Setting(setting=float(ratio), forgotten=left.pop(skill), others=left)
            points.setdefault((skill, selection, coin), []).append(setting)
    for (skill, selection, coin), settings in points.items():
        method = f"Neuron Adjust ({selection}, {coin})"
        yield Frontier(source=SOURCE, method=method, skill=skill, name="β", points=settings)


def languages(rows: Rows) -> Iterator[Languages]:
    """Each language forgotten by Key Space Detection, each tested."""
    forgotten = [name for name in LANGUAGES if f"ksd {name} chosen" in rows]
    if forgotten:
        shares = [_left(rows[f"ksd {one} chosen"]["accuracy"], rows["base"]) for one in forgotten]
        yield Languages(
            source=SOURCE,
            method="Key Space Detection",
            forgotten=forgotten,
            tested=LANGUAGES,
            shares=[[share[name] for name in LANGUAGES] for share in shares],
        )


def matched(rows: Rows, probed: Probed, base: Path, pairs: int) -> Iterator[Matched]:
    """For each skill, Key Space Detection beside the Neuron Adjust that comes nearest to it in forgetting."""
    curves: dict[str, list[tuple[str, Setting]]] = {}
    for curve in frontiers(rows):
        curves.setdefault(curve.skill, []).extend((curve.method, point) for point in curve.points)
    for skill, points in curves.items():
        if (row := rows.get(f"ksd {skill} chosen")) is None:
            continue
        left = _left(row["accuracy"], rows["base"])
        target = left.pop(skill)
        method, nearby = min(points, key=lambda entry: abs(entry[1].forgotten - target))
        check = probed.check(skill, row["layers"], row["cubes"], row["floor"], row["alpha"])
        passing, refused = latency(check, skill, probed, base, pairs)
        adjusting, _ = latency(adjust(skill, method, nearby.setting, probed), skill, probed, base, pairs)
        where = f"layer{'s' if len(check.layers) > 1 else ''} {', '.join(map(str, check.layers))}"
        compared = [
            Compared(
                method=f"Key Space Detection, {where}",
                forgotten=target,
                least_other=min(left.values()),
                latency=passing,
                latency_refused=refused,
            ),
            Compared(
                method=f"{method}, β {nearby.setting:.0%}",
                forgotten=nearby.forgotten,
                least_other=min(nearby.others.values()),
                latency=adjusting,
            ),
        ]
        timed = f"latency: one prompt's prefill on the bundled model, one thread, median of {pairs} interleaved pairs"
        yield Matched(source=f"{SOURCE}; {timed}", skill=skill, methods=compared)


def adjust(skill: str, method: str, ratio: float, probed: Probed) -> Intervention:
    """The Neuron Adjust that the benchmark measured."""
    records = {name: probed.records(name, "probing", 1400) for name in SKILLS}
    retained = [record for name in SKILLS if name != skill for record in records[name]]
    forget, retain = (probe_neurons(probed.model, chosen, batch_size=64) for chosen in (records[skill], retained))
    selection, coin = method.partition("(")[2].rstrip(")").split(", ")
    options = NeuronAdjustOptions(forget=skill, ratio=ratio, selection=selection, coin=coin)
    return fit_neuron_adjust(forget, retain, options)


def latency(one: Intervention, skill: str, probed: Probed, base: Path, pairs: int) -> tuple[float, float | None]:
    """Prefill of a prompt of another skill, and of one that is refused, against the base model's."""
    canary = measure_canary(probed.model, [one], [list(range(2, 12))])
    plan = Plan(identity(probed.model, "0" * 64), (one,), canary, {"data": {}, "versions": {}})
    graph = load_graph(base / "model.onnx")
    apply_plan(graph, plan)
    runners = Runner(base, threads=1), Runner(base, threads=1, graph=graph_bytes(graph))
    found: list[float | None] = []
    other = next(name for name in SKILLS if name != skill)
    for prompt_skill in (other, skill):
        prompt = np.array([probed.records(prompt_skill, "test", 1)[0].prompt_ids])
        said = [float(np.sort(runner.step(prompt, np.ones_like(prompt)).logits[0, -1])[-2]) for runner in runners]
        refused = said[1] < -10_000
        if refused != (prompt_skill == skill and isinstance(one, KeySpaceDetection)):
            found.append(None)
            continue
        runs = [partial(runner.step, prompt, np.ones_like(prompt)) for runner in runners]
        found.append(round(compare(*runs, pairs=pairs, clock="processor").ratio, 3))
    passing, refusing = found
    if passing is None:
        raise click.ClickException(f"{one.kind} of {skill} does not do what is to be timed")
    return passing, refusing if isinstance(one, KeySpaceDetection) else None


def _left(accuracies: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    return {name: accuracies[name] / base[name] for name in base}


def _rounded(content: Any) -> Any:
    """JSON with four digits behind the point."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return round(content, 4) if isinstance(content, float) else content


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="figures.json.")
@click.option("--pairs", default=200, show_default=True, help="Interleaved pairs per latency.")
@click.option("--add", type=click.Path(path_type=Path), multiple=True, help="Other figures to put beside; repeatable.")
def main(directory: Path, output: Path, pairs: int, add: tuple[Path, ...]) -> None:
    """Write the figures of the rows in DIRECTORY."""
    rows = json.loads((directory / "rows.json").read_text())
    probed = Probed()
    figures: list[Figure] = [
        *insides(rows, probed),
        *depths(probed),
        *frontiers(rows),
        *languages(rows),
        *matched(rows, probed, directory / "base", pairs),
        *(figure for path in add for figure in read_figures(path)),
    ]
    output.write_text(json.dumps(_rounded(figures_json(figures)), ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
