"""UNLEARN on the bundled model: one language or two skills taken away, with and without discrimination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from bench import Bench
from weights_plans import baked, kept_plan

from bakeout.models.data.rows import Record
from bakeout.models.methods.reveal_and_release.release import Text, reproduced
from bakeout.models.methods.unlearn.fit import fit_unlearn
from bakeout.models.methods.unlearn.options import UnlearnOptions
from bakeout.models.plan import Intervention, LowRankUpdate, Plan
from bakeout.models.reference.weight_edits import edited_weights
from bakeout.models.skills.generator import SKILLS

# What is taken away, what it must be told apart from, and the energies that are tried on the selection split.
Request = tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]
REQUESTS: list[Request] = [
    (("german",), (), (0.9,)),
    (("german",), ("spanish", "french"), (0.9, 0.95, 0.99)),
    (("german", "code"), ("spanish", "french"), (0.9, 0.95)),
    (("german", "code"), ("spanish", "french", "math"), (0.95,)),
]
# How many probing rows a task is found on, and a similar one told apart by; and rows that the energy is chosen on.
TARGET_ROWS, SIMILAR_ROWS, CHOSEN_ON = 800, 200, 200
# What may be left of what is taken away, and lost of the rest.
LEFT, LOST = 0.04, 0.025


def rows(bench: Bench) -> None:
    """Every request, with the energy that is best on the selection split."""
    for request in REQUESTS:
        key = _key(request)
        if key in bench.rows:
            continue
        plan = fitted(bench, request)
        energy = plan.interventions[0].report.details["energy"]
        row = {"energy": energy, "accuracy": bench.accuracies(baked(bench, plan))}
        print(f"{key}: {row}", flush=True)
        bench.save(key, row)


def fitted(bench: Bench, request: Request) -> Plan:
    """The plan of a request: of the energies, the one that is best on the selection split."""
    targets, _, energies = request

    def fit() -> list[Intervention]:
        fits: list[LowRankUpdate] = [_fit(bench, request, energy) for energy in energies]
        if len(fits) == 1:
            return [*fits]
        before = right_shares(bench, "selection")
        return [min(fits, key=lambda update: _worth(bench, update, targets, before))]

    return kept_plan(bench, _key(request), fit)


def table(bench: Bench) -> str:
    """The rows as Markdown: accuracies as shares of base."""
    base = bench.rows["base"]
    lines = [
        "UNLEARN: accuracy as a share of base.\n\n",
        f"| taken away | told apart from | energy | {' | '.join(SKILLS)} |\n" + "| --- " * (len(SKILLS) + 3) + "|\n",
    ]
    for request in REQUESTS:
        if (row := bench.rows.get(_key(request))) is None:
            continue
        targets, similar, _ = request
        shares = {name: f"{row['accuracy'][name] / base[name]:.3f}" for name in SKILLS}
        for target in targets:
            shares[target] = f"**{shares[target]}**"
        settings = f"| {', '.join(targets)} | {', '.join(similar) or 'nothing'} | {row['energy'] or ''} | "
        lines.append(settings + f"{' | '.join(shares.values())} |\n")
    return "".join(lines)


def _fit(bench: Bench, request: Request, energy: float) -> LowRankUpdate:
    targets, similar, _ = request
    return fit_unlearn(
        bench.model,
        {name: bench.records(name, "probing", TARGET_ROWS) for name in targets},
        {name: bench.records(name, "probing", SIMILAR_ROWS) for name in similar},
        UnlearnOptions(forget=list(targets), energy=energy),
    )


def _worth(bench: Bench, update: LowRankUpdate, targets: Sequence[str], before: Mapping[str, float]) -> float:
    """The worst of what is left and what is lost on the selection split, as shares of what may be."""
    with edited_weights(bench.model, [update]):
        after = right_shares(bench, "selection")
    left = [after[name] / before[name] / LEFT for name in targets]
    lost = [(1 - after[name] / before[name]) / LOST for name in SKILLS if name not in targets]
    return max(left + lost)


def right_shares(bench: Bench, split: str, count: int = CHOSEN_ON) -> dict[str, float]:
    """The share of each skill's answers that the PyTorch model, as it is, gives to the letter."""
    return {
        skill: float(np.mean(reproduced(bench.model, texts(bench.records(skill, split, count))))) for skill in SKILLS
    }


def texts(records: Sequence[Record]) -> list[Text]:
    """Records as texts to be generated."""
    return [Text(record.prompt_ids, record.response_ids) for record in records]


def _key(request: Request) -> str:
    targets, similar, _ = request
    return f"unlearn {'+'.join(targets)} from {'+'.join(similar) or 'nothing'}"
