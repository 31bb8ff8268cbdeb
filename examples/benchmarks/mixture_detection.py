"""Key Space Detection on a mixture of experts with nothing set by hand, on every kind of keys."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from bench import Bench
from choosing_structure import FORGOTTEN, QUERIES, TOLD_FROM, LayerKeys, correct_answers
from mixture_routing import stability
from weights_plans import baked

from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions, Structure
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.key_space_detection.structure import Choice, choose_structure, joint_choice
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import Keys, KeySpaceDetection
from bakeout.models.skills.generator import SKILLS
from bakeout.models.skills.tokenizer import REFUSAL

KINDS: tuple[Keys, ...] = get_args(Keys)
AUTOMATIC = "auto"


def rows(bench: Bench) -> None:
    """For each skill in turn: the choice among keys of each kind, and among those of all kinds."""
    keys = KeysOf(bench)
    for skill in FORGOTTEN:
        names = [f"ksd {skill} {kind}" for kind in (*KINDS, AUTOMATIC)]
        if all(name in bench.rows for name in names):
            continue
        choices = {kind: _choice(bench, keys, skill, kind) for kind in KINDS}
        for name, choice in zip(names, [*choices.values(), joint_choice(list(choices.values()))], strict=True):
            if name not in bench.rows:
                bench.save(name, _measured(bench, keys, skill, choice.chosen.structure))
                print(name, bench.rows[name], flush=True)


def _choice(bench: Bench, keys: KeysOf, skill: str, kind: Keys) -> Choice:
    """What a recipe that sets nothing but ``keys`` does."""
    others = [name for name in SKILLS if name != skill]
    told_from = {
        name: {use: keys(name, use, kind, TOLD_FROM[name]) for use in ("selection", "probing")} for name in others
    }
    right = {name: correct_answers(bench, name, "selection") for name in SKILLS}
    return choose_structure(
        {skill: keys(skill, "probing", kind)},
        {skill: keys(skill, "selection", kind)} | {name: own["selection"] for name, own in told_from.items()},
        region="auto",
        against={name: own["probing"] for name, own in told_from.items()},
        keys=kind,
        layers="auto",
        cubes="auto",
        floor="auto",
        epsilon="auto",
        seed=0,
        correct={name: answered[: None if name == skill else TOLD_FROM[name]] for name, answered in right.items()},
        calibration_queries=QUERIES["calibration"],
    )


def _measured(bench: Bench, keys: KeysOf, skill: str, structure: Structure) -> dict[str, Any]:
    """What the baked graph answers; the same structure, chosen on another way, is not measured anew."""
    for kind in KINDS:
        row = bench.rows.get(f"ksd {skill} {kind}")
        if row is not None and row["structure"] == _json(structure):
            return dict(row)
    check = _fitted(bench, keys, skill, structure)
    plan = bench.plan(check, [record.prompt_ids for record in bench.records(skill, "calibration", 4)])
    return {
        "structure": _json(structure),
        "alpha": float(check.alpha[0]),
        "accuracy": bench.accuracies(baked(bench, plan)),
        "routing": stability(bench, plan, [skill]),
    }


def _fitted(bench: Bench, keys: KeysOf, skill: str, structure: Structure) -> KeySpaceDetection:
    others = [name for name in SKILLS if name != skill]
    return fit_key_space_detection(
        {skill: keys(skill, "probing", structure.keys)},
        {skill: keys(skill, "calibration", structure.keys)},
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

    def __call__(self, skill: str, split: str, kind: Keys, count: int | None = None) -> LayerKeys:
        """Per layer float32 [queries, F]."""
        path = self._directory / f"{skill}.{split}.{kind}.npy"
        layers = range(len(key_sites(self._bench.model, kind)))
        if not path.exists():
            prompts = [record.prompt_ids for record in self._bench.records(skill, split, QUERIES[split])]
            probed = probe_keys(self._bench.model, prompts, layers=layers, keys=kind, batch_size=64)
            partial = Path(f"{path}.partial")
            with partial.open("wb") as file:
                np.save(file, np.stack([probed[layer] for layer in layers]))
            partial.rename(path)
        return dict(enumerate(np.load(path)[:, :count]))


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    lines = [
        "| forgotten | keys | chosen | " + " | ".join(SKILLS) + " | routing |\n" + "| --- " * (len(SKILLS) + 4) + "|\n"
    ]
    for skill in FORGOTTEN:
        for kind in (*KINDS, AUTOMATIC):
            if (row := bench.rows.get(f"ksd {skill} {kind}")) is not None:
                shares = [f"{row['accuracy'][name] / bench.rows['base'][name]:.3f}" for name in SKILLS]
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
