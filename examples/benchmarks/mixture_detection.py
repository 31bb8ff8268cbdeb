"""Key Space Detection on a mixture of experts with nothing set by hand, on every kind of keys.

What is refused is read from the baked graph's logits at the prefill; some answers of each skill are decoded to their
end, by the baked graph and by the unbaked one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench
from mixture_routing import stability
from numpy.typing import NDArray
from weights_plans import baked

from bakeout.export.running.refusals import is_refused
from bakeout.export.running.runner import Runner
from bakeout.models.data.padding import left_padded
from bakeout.models.methods.key_space_detection.choosing.candidate import Choice
from bakeout.models.methods.key_space_detection.choosing.structure import choose_structure, joint_choice
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions, Structure
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.network.generation import end_tokens
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.probing import probe_keys
from bakeout.models.network.teacher_forcing import answers
from bakeout.models.plan import Keys, KeySpaceDetection
from bakeout.models.skills.generator import SKILLS
from bakeout.models.skills.tokenizer import REFUSAL

KINDS: tuple[Keys, ...] = ("router_logits", "router_input", "key_vector")
AUTOMATIC = "auto"
# Skills to forget, their queries of each split, and the queries of every other skill that they are told from.
FORGOTTEN = [skill for skill in SKILLS if skill != "unknown"]
QUERIES = {"probing": 1400, "selection": 1000, "calibration": 1400}
TOLD_FROM = dict.fromkeys(SKILLS, 150) | {"facts": 300, "unknown": 300}
# Answers of each skill that are decoded to their end, and the tokens of the longest.
DECODED, LONGEST = 20, 16

LayerKeys = dict[int, NDArray[np.float32]]


def rows(bench: Bench) -> None:
    """For each skill in turn: the choice among keys of each kind, and among those of all kinds."""
    keys = KeysOf(bench)
    for skill in FORGOTTEN:
        if all(f"ksd {skill} {kind}" in bench.rows for kind in (*KINDS, AUTOMATIC)):
            continue
        choices: list[Choice] = []
        for kind in KINDS:
            choices.append(_choice(bench, keys, skill, kind))
            _save(bench, keys, skill, kind, choices[-1])
        _save(bench, keys, skill, AUTOMATIC, joint_choice(choices))


def _save(bench: Bench, keys: KeysOf, skill: str, kind: str, choice: Choice) -> None:
    if (name := f"ksd {skill} {kind}") not in bench.rows:
        bench.save(name, _measured(bench, keys, skill, choice.chosen.structure))
        print(f"{name}: {bench.rows[name]}", flush=True)


def _choice(bench: Bench, keys: KeysOf, skill: str, kind: Keys) -> Choice:
    """What a recipe that sets nothing but ``keys`` does."""
    others = [name for name in SKILLS if name != skill]
    told_from = {
        name: {use: keys(name, use, kind, TOLD_FROM[name]) for use in ("selection", "probing")} for name in others
    }
    counts = {name: QUERIES["selection"] if name == skill else TOLD_FROM[name] for name in SKILLS}
    return choose_structure(
        {skill: keys.all(skill, "probing", kind)},
        {skill: keys.all(skill, "selection", kind)} | {name: own["selection"] for name, own in told_from.items()},
        region="auto",
        against={name: own["probing"] for name, own in told_from.items()},
        keys=kind,
        layers="auto",
        cubes="auto",
        floor="auto",
        epsilon="auto",
        seed=0,
        correct={name: answered_correctly(bench, name, "selection", count) for name, count in counts.items()},
        calibration_queries=QUERIES["calibration"],
    )


def _measured(bench: Bench, keys: KeysOf, skill: str, structure: Structure) -> dict[str, Any]:
    """What the baked graph refuses; the same structure, chosen on another way, is not measured anew."""
    for kind in KINDS:
        row = bench.rows.get(f"ksd {skill} {kind}")
        if row is not None and row["structure"] == _json(structure):
            return dict(row)
    check = _fitted(bench, keys, skill, structure)
    plan = bench.plan(check, [record.prompt_ids for record in bench.records(skill, "calibration", 4)])
    runner, unbaked = bench.runner(baked(bench, plan)), bench.runner(bench.base)
    left, decoded = {}, 0
    for name in SKILLS:
        prompts = [record.prompt_ids for record in bench.records(name, "test", bench.tests)]
        refused = _refused(runner, prompts)
        left[name] = float((~refused[answered_correctly(bench, name, "test", bench.tests)]).mean())
        said, before = (which.generate(prompts[:DECODED], LONGEST, batch_size=DECODED) for which in (runner, unbaked))
        expected = [check.refusal.tolist() if own else answer for own, answer in zip(refused, before, strict=False)]
        decoded += sum(answer == other for answer, other in zip(said, expected, strict=True))
    return {
        "structure": _json(structure),
        "alpha": float(check.alpha[0]),
        "left": left,
        "decoded": [decoded, DECODED * len(SKILLS)],
        "routing": stability(bench, plan, [skill]),
    }


def _refused(runner: Runner, prompts: list[list[int]]) -> NDArray[np.bool_]:
    """Which queries the graph refuses at the prefill."""
    refused = []
    for start in range(0, len(prompts), 50):
        logits = runner.step(*left_padded(prompts[start : start + 50])).logits[:, -1]
        refused += [is_refused(row) for row in logits]
    return np.array(refused)


def answered_correctly(bench: Bench, skill: str, split: str, count: int) -> NDArray[np.bool_]:
    """Which queries of a split the unbaked model answers correctly."""
    if (key := f"wrong {skill} {split} {count}") not in bench.rows:
        records = bench.records(skill, split, count)
        said = answers(bench.model, records, end=end_tokens(bench.model, bench.tokenizer), batch_size=64)
        bench.save(key, np.flatnonzero(~said.correct).tolist())
    correct = np.ones(count, dtype=bool)
    correct[bench.rows[key]] = False
    return correct


def _fitted(bench: Bench, keys: KeysOf, skill: str, structure: Structure) -> KeySpaceDetection:
    others = [name for name in SKILLS if name != skill]
    return fit_key_space_detection(
        {skill: keys.all(skill, "probing", structure.keys)},
        {skill: keys.all(skill, "calibration", structure.keys)},
        {},
        KeySpaceDetectionOptions(forget=skill).with_structure(structure),
        refusal=refusal_tokens(REFUSAL, bench.tokenizer, bench.ends),
        against={name: keys(name, "probing", structure.keys, TOLD_FROM[name]) for name in others},
    )


def _json(structure: Structure) -> dict[str, Any]:
    return asdict(structure) | {"layers": list(structure.layers)}


class KeysOf:
    """Keys of all layers by skill, split and kind, probed once and kept on disk."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._directory = bench.output / "keys"
        self._directory.mkdir(exist_ok=True)

    def __call__(self, skill: str, split: str, kind: Keys, count: int) -> LayerKeys:
        """Of ``count`` queries, per layer float32 [queries, F]."""
        path = self._directory / f"{skill}.{split}.{kind}.{count}.npy"
        layers = range(len(key_sites(self._bench.model, kind)))
        if not path.exists():
            prompts = [record.prompt_ids for record in self._bench.records(skill, split, count)]
            probed = probe_keys(self._bench.model, prompts, layers=layers, keys=kind, batch_size=64)
            partial = Path(f"{path}.partial")
            with partial.open("wb") as file:
                np.save(file, np.stack([probed[layer] for layer in layers]))
            partial.rename(path)
        return dict(enumerate(np.load(path)))

    def all(self, skill: str, split: str, kind: Keys) -> LayerKeys:
        """Those of a skill to forget."""
        return self(skill, split, kind, QUERIES[split])


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    header = ["forgotten", "keys", "chosen", *SKILLS, "routing"]
    lines = [f"| {' | '.join(header)} |\n" + "| --- " * len(header) + "|\n"]
    for skill in FORGOTTEN:
        for kind in (*KINDS, AUTOMATIC):
            if (row := bench.rows.get(f"ksd {skill} {kind}")) is not None:
                shares = [f"{row['left'][name]:.3f}" for name in SKILLS]
                shares[SKILLS.index(skill)] = f"**{shares[SKILLS.index(skill)]}**"
                kept = f"{100 * row['routing'][0]:.1f} %"
                lines.append(f"| {skill} | {kind} | {_described(row, kind)} | {' | '.join(shares)} | {kept} |\n")
    return "".join(lines)


def _described(row: dict[str, Any], kind: str) -> str:
    chosen = row["structure"]
    of = f"{chosen['keys']}, " if kind == AUTOMATIC else ""
    region = f"{chosen['cubes']} × {chosen['region']}"
    floor = f", floor {chosen['floor']}" if chosen["region"] == "cube" else ""
    layers = ", ".join(map(str, chosen["layers"]))
    return f"{of}layers {layers}; {region}{floor}, ε {chosen['epsilon']:.2%}, α {row['alpha']:.1f}"
