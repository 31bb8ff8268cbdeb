"""UNLEARN on the bundled model: one language or two skills taken away, with and without discrimination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import Bench

from bakeout.models.methods.release import Text, said
from bakeout.models.methods.unlearn import fit_unlearn
from bakeout.models.plan import LowRankUpdate
from bakeout.models.skills.generator import SKILLS
from bakeout.models.weight_edits import edited_weights

# (what is taken away, what it must be told apart from)
REQUESTS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("german",), ()),
    (("german",), ("spanish", "french")),
    (("german", "code"), ("spanish", "french")),
]
ENERGIES = [0.9, 0.95, 0.99]
# How many probing rows a task is found on, and a similar one told apart by; and rows that the energy is chosen on.
TARGET_ROWS, SIMILAR_ROWS, CHOSEN_ON = 800, 200, 200
# What may be left of what is taken away, and lost of the rest.
LEFT, LOST = 0.04, 0.025


def rows(bench: Bench) -> None:
    """Every request, with the energy that is best on the selection split."""
    for targets, similar in REQUESTS:
        key = _key(targets, similar)
        if key in bench.rows:
            continue
        fits = {energy: _fit(bench, targets, similar, energy) for energy in (ENERGIES if similar else ENERGIES[:1])}
        energy = min(fits, key=lambda energy: _worth(bench, fits[energy], targets))
        prompts = [record.prompt_ids for record in bench.records(targets[0], "probing")]
        row = {
            "energy": energy if similar else None,
            "accuracy": bench.artifact_accuracies(fits[energy], prompts),
        }
        print(f"{key}: {row}", flush=True)
        bench.save(key, row)


def table(bench: Bench) -> str:
    """The rows as Markdown: accuracies as shares of base."""
    base = bench.rows["base"]
    lines = [
        "UNLEARN: accuracy as a share of base.\n\n",
        f"| taken away | told apart from | energy | {' | '.join(SKILLS)} |\n" + "| --- " * (len(SKILLS) + 3) + "|\n",
    ]
    for targets, similar in REQUESTS:
        if (row := bench.rows.get(_key(targets, similar))) is None:
            continue
        shares = {name: f"{row['accuracy'][name] / base[name]:.3f}" for name in SKILLS}
        for target in targets:
            shares[target] = f"**{shares[target]}**"
        settings = f"| {', '.join(targets)} | {', '.join(similar) or 'nothing'} | {row['energy'] or ''} | "
        lines.append(settings + f"{' | '.join(shares.values())} |\n")
    return "".join(lines)


def _fit(bench: Bench, targets: Sequence[str], similar: Sequence[str], energy: float) -> LowRankUpdate:
    return fit_unlearn(
        bench.model,
        {name: bench.records(name, "probing", TARGET_ROWS) for name in targets},
        {name: bench.records(name, "probing", SIMILAR_ROWS) for name in similar},
        energy=energy,
    )


def _worth(bench: Bench, update: LowRankUpdate, targets: Sequence[str]) -> float:
    """The worst of what is left and what is lost on the selection split, as shares of what may be."""
    with edited_weights(bench.model, [update]):
        right = {name: _right(bench, name) for name in SKILLS}
    before = {name: _right(bench, name) for name in SKILLS}
    left = [right[name] / before[name] / LEFT for name in targets]
    lost = [(1 - right[name] / before[name]) / LOST for name in SKILLS if name not in targets]
    return max(left + lost)


def _right(bench: Bench, skill: str) -> float:
    records: list[Any] = bench.records(skill, "selection", CHOSEN_ON)
    answers = said(bench.model, [Text(record.prompt_ids, record.response_ids) for record in records])
    return sum(answers) / len(answers)


def _key(targets: Sequence[str], similar: Sequence[str]) -> str:
    return f"unlearn {'+'.join(targets)} from {'+'.join(similar) or 'nothing'}"
