"""What forgetting does to every skill of the bundled model: the tables of Key Space Detection and Neuron Adjust.

    python examples/benchmarks/skills.py --output runs/benchmarks/skills

Figures are exact-match accuracies of greedy answers under ONNX Runtime, on test prompts that nothing else has seen.
Stops and resumes: finished rows lie in ``<output>/rows.json``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench import Bench
from numpy.typing import NDArray

from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions, Structure
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions, Selection
from bakeout.models.network.probing import probe_keys, probe_neurons
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS
from bakeout.models.skills.tokenizer import REFUSAL

DETECTED = [skill for skill in SKILLS if skill != "unknown"]
ADJUSTED = ["math", "german", "code"]
LAYERS = range(6)
# What the structure is chosen from.
LAYER_SETS = [(0,), (2, 3), (1, 2, 3), (2, 3, 4)]
CUBES = [4, 16, 32]
FLOORS = [0.3, 1.0]
# Queries a split, for fitting, choosing and calibrating cubes: many, where the skill has them.
QUERIES = {skill: 1400 if skill == "facts" else 3000 for skill in SKILLS}
RATIOS = [0.03, 0.1, 0.15, 0.2, 0.3, 0.4]
SELECTIONS: tuple[Selection, ...] = ("difference", "standardised")
# The shares of queries that may get through that alpha is set for, and what is tolerated of right answers: how many of
# the forgotten skill's may be left, and how many of another's lost.
EPSILONS = [0.005, 0.01, 0.015, 0.02, 0.03]
LEFT, LOST = 0.02, 0.01

LayerKeys = dict[int, Any]


DEFAULTS = Structure(layers=(max(LAYERS),), cubes=1, floor=0.1, epsilon=0.005)


def choose_structure(
    skill: str, keys: Mapping[str, Mapping[str, LayerKeys]], correct: Mapping[str, NDArray[np.bool_]], refusal: Any
) -> Structure:
    """The structure that forgets, and costs the other skills, least on the selection split.

    Of correct answers, the share of the skill's that is left and the largest share of another's that is lost are each
    held against what is tolerated, and the worse of the two counts. At like worth the shallowest wins, then fewer
    layers, then fewer cubes. The selection split's own queries set alpha here; the calibration split is not touched.
    """
    best: tuple[Any, Structure] | None = None
    for layers, cubes, floor in itertools.product(LAYER_SETS, CUBES, FLOORS):
        check = fit_key_space_detection(
            {skill: keys[skill]["probing"]},
            {},
            {},
            KeySpaceDetectionOptions(forget=skill, layers=list(layers), cubes=cubes, floor=floor, alpha=1.0),
            refusal=refusal,
        )
        margins = {name: nearest(check, keys[name]["selection"]) for name in SKILLS}
        for epsilon in EPSILONS:
            alpha = np.quantile(margins[skill], 1 - epsilon, method="higher")
            inside = {name: float((margins[name][correct[name]] <= alpha).mean()) for name in SKILLS}
            lost = max(share for name, share in inside.items() if name != skill)
            worth = max((1 - inside[skill]) / LEFT, lost / LOST)
            rank = (round(worth, 2), layers[-1], len(layers), cubes, floor, epsilon)
            if best is None or rank < best[0]:
                best = rank, Structure(layers, cubes, floor, epsilon)
    assert best is not None
    return best[1]


def nearest(check: KeySpaceDetection, keys: LayerKeys) -> NDArray[np.float64]:
    """The margin of each query to the nearest cube: float64 [queries]."""
    margins = check.margins(np.concatenate([keys[layer] for layer in check.layers], axis=1))
    nearest_margin: NDArray[np.float64] = margins.min(axis=1)
    return nearest_margin


def key_space_detection(bench: Bench) -> None:
    """Forget every skill in turn, with the structure chosen on the selection split and with the plain defaults."""
    refusal = refusal_tokens(REFUSAL, bench.tokenizer, bench.ends)
    keys: dict[str, dict[str, LayerKeys]] = {}
    prompts = {}
    for skill in SKILLS:
        keys[skill] = {}
        for split in ("probing", "selection", "calibration"):
            prompts[skill] = [record.prompt_ids for record in bench.records(skill, split, QUERIES[skill])]
            keys[skill][split] = probe_keys(bench.model, prompts[skill], layers=LAYERS, batch_size=64)
    correct = {skill: bench.correct(skill, "selection", QUERIES[skill]) for skill in SKILLS}
    for skill in DETECTED:
        for layer in LAYERS:
            if (key := f"figure5 {skill} {layer}") not in bench.rows:
                bench.save(key, one_cube(skill, layer, keys, refusal))
        for name in ("chosen", "defaults"):
            if f"ksd {skill} {name}" in bench.rows:
                continue
            structure = choose_structure(skill, keys, correct, refusal) if name == "chosen" else DEFAULTS
            check = fit_key_space_detection(
                {skill: keys[skill]["probing"]},
                {skill: keys[skill]["calibration"]},
                {other: keys[other]["calibration"] for other in SKILLS if other != skill},
                KeySpaceDetectionOptions(forget=skill).with_structure(structure),
                refusal=refusal,
            )
            row: dict[str, Any] = asdict(structure)
            row["alpha"] = float(check.alpha[0])
            row["false_refusals"] = {other: entry["rate"] for other, entry in check.report.as_json()["retain"].items()}
            row["accuracy"] = bench.artifact_accuracies(check, prompts[skill])
            print(f"KSD {skill} {name}: {row}", flush=True)
            bench.save(f"ksd {skill} {name}", row)


def one_cube(skill: str, layer: int, keys: Mapping[str, Mapping[str, LayerKeys]], refusal: Any) -> dict[str, float]:
    """The paper's Figure 5 at the alpha that holds all but epsilon: shares of each skill's fresh queries inside."""
    check = fit_key_space_detection(
        {skill: keys[skill]["probing"]},
        {skill: keys[skill]["calibration"]},
        {name: keys[name]["selection"] for name in SKILLS},
        KeySpaceDetectionOptions(forget=skill, layers=[layer], epsilon=DEFAULTS.epsilon),
        refusal=refusal,
    )
    return {"alpha": float(check.alpha[0])} | {
        name: row["rate"] for name, row in check.report.as_json()["retain"].items()
    }


def neuron_adjust(bench: Bench, coin: str) -> None:
    """The whole frontier over beta, for both selections."""
    records = {skill: bench.records(skill, "probing") for skill in SKILLS}
    statistics = {skill: probe_neurons(bench.model, records[skill], batch_size=64) for skill in SKILLS}
    for skill in ADJUSTED:
        retained = [record for other in SKILLS if other != skill for record in records[other]]
        retain = probe_neurons(bench.model, retained, batch_size=64)
        for selection in SELECTIONS:
            for ratio in RATIOS:
                key = f"na {skill} {selection} {ratio} {coin}"
                if key in bench.rows:
                    continue
                adjust = fit_neuron_adjust(
                    statistics[skill],
                    retain,
                    NeuronAdjustOptions(forget=skill, ratio=ratio, selection=selection, coin=coin),
                )
                prompts = [record.prompt_ids for record in records[skill]]
                row = bench.artifact_accuracies(adjust, prompts)
                print(f"{key}: {row}", flush=True)
                bench.save(key, row)


def tables(bench: Bench) -> str:
    """The rows as Markdown."""
    base = bench.rows["base"]
    header = "| " + " | ".join(["forgotten", "settings", *SKILLS]) + " |\n" + "| --- " * (len(SKILLS) + 2) + "|\n"
    lines = [
        f"Base accuracy: {', '.join(f'{skill} {base[skill]:.1%}' for skill in SKILLS)}.\n",
        "Key Space Detection: accuracy as a share of base (positions: query).\n\n" + header,
    ]
    for key, row in bench.rows.items():
        if key.startswith("ksd"):
            skill, name = key.split()[1:]
            layers = ", ".join(map(str, row["layers"]))
            cubes = (
                f"cubes {row['cubes']}, floor {row['floor']}, epsilon {row['epsilon']:.1%}, alpha {row['alpha']:.1f}"
            )
            settings = f"{name}: layers {layers}, {cubes}"
            lines.append(_table_row(skill, settings, row["accuracy"], base))
    lines.append(
        "\nOne cube in one layer (the paper's Figure 5): share of fresh queries inside, alpha holding 99.5 % of the "
        "calibration queries.\n\n" + header
    )
    for key, row in bench.rows.items():
        if key.startswith("figure5"):
            _, skill, layer = key.split()
            shares = " | ".join(f"**{row[name]:.3f}**" if name == skill else f"{row[name]:.3f}" for name in SKILLS)
            lines.append(f"| {skill} | layer {layer}, alpha {row['alpha']:.1f} | {shares} |\n")
    lines.append("\nNeuron Adjust: accuracy as a share of base.\n\n" + header)
    for key, row in bench.rows.items():
        if key.startswith("na"):
            _, skill, selection, ratio, coin = key.split()
            lines.append(_table_row(skill, f"beta {float(ratio):.1%}, {selection}, {coin}", row, base))
    return "".join(lines)


def _table_row(skill: str, settings: str, row: Mapping[str, float], base: Mapping[str, float]) -> str:
    shares = [
        f"**{row[name] / base[name]:.3f}**" if name == skill else f"{row[name] / base[name]:.3f}" for name in SKILLS
    ]
    return f"| {skill} | {settings} | {' | '.join(shares)} |\n"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows and the export are kept.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Another checkpoint than the bundled one.")
@click.option("--coin", default="threshold", show_default=True)
@click.option("--only", type=click.Choice(["ksd", "na"]), help="One of the two methods alone.")
def main(output: Path, checkpoint: Path | None, coin: str, only: str | None) -> None:
    """Measure, and print the tables."""
    np.seterr(all="raise", under="ignore")
    bench = Bench(output, checkpoint or checkpoint_directory())
    if "base" not in bench.rows:
        bench.save("base", bench.accuracies(bench.base))
    if only != "na":
        key_space_detection(bench)
    if only != "ksd":
        neuron_adjust(bench, coin)
    print(tables(bench))


if __name__ == "__main__":
    main()
