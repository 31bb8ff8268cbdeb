"""Key Space Detection with nothing set by hand: the automatic choice, and the coverage that alpha promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench
from numpy.typing import NDArray
from scipy.stats import betabinom

from bakeout.export.report.figures_file import Figure, figure
from bakeout.models.methods.key_space_detection.choosing.structure import choose_structure
from bakeout.models.methods.key_space_detection.detection import (
    conformal_quantile,
    fit_key_space_detection,
    margins_of_keys,
)
from bakeout.models.methods.key_space_detection.figures import depth_figure, inside_figures
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.network.generation import end_tokens
from bakeout.models.network.probing import probe_keys
from bakeout.models.network.teacher_forcing import answers
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.skills.generator import SKILLS
from bakeout.models.skills.tokenizer import REFUSAL

FORGOTTEN = [skill for skill in SKILLS if skill != "unknown"]
LAYERS = range(6)
# Queries of each split. A skill is separated from this many of each other's selection split, and of its probing split
# as well: from more where one of them, strangers asked about in the same words, is hard to separate.
QUERIES = {"probing": 1400, "selection": 1000, "calibration": 1400, "test": 1000}
TOLD_FROM = dict.fromkeys(SKILLS, 250) | {"facts": 500}
SPLITS = 50
EPSILONS = (0.005, 0.01, 0.03)

LayerKeys = dict[int, NDArray[np.float32]]


def rows(bench: Bench) -> None:
    """Choose for each skill in turn, and see what is forgotten and kept; then the coverage over random splits."""
    keys = Keys(bench)
    for skill in FORGOTTEN:
        if f"choice {skill}" not in bench.rows:
            _choose(bench, keys, skill)
        if f"coverage {skill}" not in bench.rows:
            bench.save(f"coverage {skill}", _coverage(bench, keys, skill))


def _choose(bench: Bench, keys: Keys, skill: str) -> None:
    """What `layers: auto`, `cubes: auto`, `floor: auto`, `epsilon: auto` and `alpha: auto` of a recipe do."""
    others = [name for name in SKILLS if name != skill]
    calibration = keys(skill, "calibration")
    selection, correct = {skill: keys(skill, "selection")}, {skill: _correct(bench, skill, "selection")}
    for name in others:
        parts = [keys(name, split) for split in ("selection", "probing")]
        count = TOLD_FROM[skill]
        selection[name] = {layer: np.concatenate([part[layer][:count] for part in parts]) for layer in LAYERS}
        correct[name] = np.concatenate([_correct(bench, name, split)[:count] for split in ("selection", "probing")])
    choice = choose_structure(
        {skill: keys(skill, "probing")},
        selection,
        layers="auto",
        cubes="auto",
        floor="auto",
        epsilon="auto",
        seed=0,
        correct=correct,
        calibration_queries=len(calibration[0]),
    )
    chosen = choice.chosen.structure
    check = fit_key_space_detection(
        {skill: keys(skill, "probing")},
        {skill: calibration},
        {name: keys(name, "calibration") for name in others},
        KeySpaceDetectionOptions(forget=skill).with_structure(chosen),
        refusal=refusal_tokens(REFUSAL, bench.tokenizer, bench.ends),
    )
    row: dict[str, Any] = {
        "chosen": choice.chosen.figures().as_json(),
        "alpha": float(check.alpha[0]),
        "looked_at": len(choice.candidates),
        "report": check.report.as_json(),
        "left": _left(bench, keys, check),
    }
    print(f"choice {skill}: {chosen}, {row['left']}", flush=True)
    bench.save(f"candidates {skill}", [one.figures().as_json() for one in choice.candidates])
    bench.save(f"choice {skill}", row)


def _left(bench: Bench, keys: Keys, check: KeySpaceDetection) -> dict[str, float]:
    """Per skill, the share not refused of the test prompts that the base model answers correctly.

    What is refused changes nothing else: artifacts say the base model's answer, bit for bit, or the refusal.
    """
    found = {}
    for name in SKILLS:
        correct = _correct(bench, name, "test")
        tested = keys(name, "test")
        margins = check.margins(np.concatenate([tested[layer][correct] for layer in check.layers], axis=1))
        found[name] = float((margins > check.alpha).all(axis=1).mean())
    return found


def _check(bench: Bench, keys: Keys, skill: str) -> KeySpaceDetection:
    """The cubes that were chosen."""
    row = bench.rows[f"choice {skill}"]
    chosen = row["chosen"]
    return fit_key_space_detection(
        {skill: keys(skill, "probing")},
        {},
        {},
        KeySpaceDetectionOptions(
            forget=skill,
            layers=chosen["layers"],
            cubes=chosen["cubes"],
            floor=chosen["floor"],
            alpha=row["alpha"],
        ),
        refusal=refusal_tokens(REFUSAL, bench.tokenizer, bench.ends),
    )


def _coverage(bench: Bench, keys: Keys, skill: str) -> dict[str, Any]:
    """Calibration and coverage on random halves of fresh queries, the cubes staying as they were chosen."""
    check = _check(bench, keys, skill)
    fresh = keys(skill, "calibration")
    margins = check.margins(np.concatenate([fresh[layer] for layer in check.layers], axis=1)).min(axis=1)
    half = len(margins) // 2
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {"queries": [half, len(margins) - half]}
    orders = [generator.permutation(len(margins)) for _ in range(SPLITS)]
    for epsilon in EPSILONS:
        covered = [
            float((margins[order[half:]] <= conformal_quantile(margins[order[:half]], epsilon, skill)).mean())
            for order in orders
        ]
        # Under exchangeability: beta-binomial, of the calibration quantile's rank.
        rank = int(np.ceil((half + 1) * (1 - epsilon) - 1e-9))
        theory = betabinom(len(margins) - half, rank, half + 1 - rank)
        found[str(epsilon)] = {
            "mean": float(np.mean(covered)),
            "deviation": float(np.std(covered, ddof=1)),
            "expected_mean": float(theory.mean()) / (len(margins) - half),
            "expected_deviation": float(theory.std()) / (len(margins) - half),
        }
    return found


class Keys:
    """Key vectors of all layers by skill and split, probed once and kept on disk."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._directory = bench.output / "keys"
        self._directory.mkdir(exist_ok=True)

    def __call__(self, skill: str, split: str) -> LayerKeys:
        """Per layer float32 [queries, F]."""
        path = self._directory / f"{skill}.{split}.npy"
        if not path.exists():
            prompts = [record.prompt_ids for record in self._bench.records(skill, split, QUERIES[split])]
            found = probe_keys(self._bench.model, prompts, layers=LAYERS, batch_size=64)
            partial = Path(f"{path}.partial")
            with partial.open("wb") as file:
                np.save(file, np.stack([found[layer] for layer in LAYERS]))
            partial.rename(path)
        return dict(enumerate(np.load(path)[:, : QUERIES[split]]))


def _correct(bench: Bench, skill: str, split: str) -> NDArray[np.bool_]:
    """Which of the queries for choosing and testing the base model answers correctly."""
    if (key := f"right {skill} {split}") not in bench.rows:
        records = bench.records(skill, split, max(TOLD_FROM.values()) if split == "probing" else QUERIES[split])
        said = answers(bench.model, records, end=end_tokens(bench.model, bench.tokenizer), batch_size=64)
        bench.save(key, np.flatnonzero(~said.correct).tolist())
    correct = np.ones(QUERIES[split], dtype=bool)
    correct[bench.rows[key]] = False
    return correct


def figures(bench: Bench) -> list[Figure]:
    """The paper's Figures 5 and 6 for every skill: against alpha as chosen, and by depth with one cube."""
    keys = Keys(bench)
    source = "examples/benchmarks/choosing.py, 1,000 test prompts a skill"
    found: list[Figure] = []
    for skill in FORGOTTEN:
        if f"choice {skill}" in bench.rows:
            tested = {name: keys(name, "test") for name in SKILLS}
            check = _check(bench, keys, skill)
            margins = {name: margins_of_keys(check, rows, name) for name, rows in tested.items()}
            drawn = [*inside_figures(check, margins)]
            drawn.append(depth_figure(skill, keys(skill, "probing"), tested))
            found += [figure(content, source) for content in drawn]
    return found


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    lines = ["| forgotten | chosen | " + " | ".join(SKILLS) + " |\n" + "| --- " * (len(SKILLS) + 2) + "|\n"]
    for skill in FORGOTTEN:
        if (row := bench.rows.get(f"choice {skill}")) is None:
            continue
        chosen = row["chosen"]
        settings = (
            f"layers {', '.join(map(str, chosen['layers']))}; {chosen['cubes']} cubes, floor {chosen['floor']}, "
            f"ε {chosen['epsilon']:.1%}, α {row['alpha']:.1f}"
        )
        shares = [f"{row['left'][name]:.4f}" for name in SKILLS]
        shares[SKILLS.index(skill)] = f"**{shares[SKILLS.index(skill)]}**"
        lines.append(f"| {skill} | {settings} | {' | '.join(shares)} |\n")
    lines.append("\n| skill | ε | mean coverage | expected | spread | expected |\n" + "| --- " * 6 + "|\n")
    lines += [
        f"| {skill} | {float(epsilon):.1%} | {found['mean']:.4f} | {found['expected_mean']:.4f} | "
        f"{found['deviation']:.4f} | {found['expected_deviation']:.4f} |\n"
        for skill in FORGOTTEN
        for epsilon in map(str, EPSILONS)
        if (found := bench.rows.get(f"coverage {skill}", {}).get(epsilon)) is not None
    ]
    return "".join(lines)
