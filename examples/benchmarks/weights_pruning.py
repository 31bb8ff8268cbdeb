"""Selective Pruning on the bundled model: what is left of every skill, over the share of neurons cut off."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce

from bench import Bench
from weights_plans import baked, kept_plan

from bakeout.models.methods.selective_pruning.fit import fit_selective_pruning
from bakeout.models.network.probing import probe_key_magnitudes
from bakeout.models.network.statistics import KeyMagnitudes
from bakeout.models.plan import Intervention, Plan
from bakeout.models.skills.generator import SKILLS

FORGOTTEN = ["math", "code"]
RATIOS = [0.015, 0.05, 0.1, 0.2]
# Rows of each skill that the scores are over.
ROWS = 300


def rows(bench: Bench) -> None:
    """The frontier over p, the share of all neurons cut off, for arithmetic and for code."""
    magnitudes = probed(bench)
    for skill in FORGOTTEN:
        for ratio in RATIOS:
            if (key := _key(skill, ratio)) not in bench.rows:
                row = bench.accuracies(baked(bench, pruned(bench, skill, ratio, magnitudes)))
                print(f"{key}: {row}", flush=True)
                bench.save(key, row)


def probed(bench: Bench) -> Callable[[str], KeyMagnitudes]:
    """A function that gives a skill's statistics, each probed once, when it is asked for."""

    @cache
    def magnitudes(skill: str) -> KeyMagnitudes:
        return probe_key_magnitudes(bench.model, bench.records(skill, "probing", ROWS), batch_size=64)

    return magnitudes


def pruned(bench: Bench, skill: str, ratio: float, magnitudes: Callable[[str], KeyMagnitudes]) -> Plan:
    """The plan that cuts off the share ``ratio`` of all neurons; retained are all other skills."""

    def fit() -> list[Intervention]:
        retain = reduce(KeyMagnitudes.merge, (magnitudes(name) for name in SKILLS if name != skill))
        return [fit_selective_pruning(magnitudes(skill), retain, ratio=ratio)]

    return kept_plan(bench, _key(skill, ratio), fit)


def table(bench: Bench) -> str:
    """The rows as Markdown: accuracies as shares of base."""
    base = bench.rows["base"]
    lines = [
        "Selective Pruning: accuracy as a share of base.\n\n",
        f"| forgotten | p | {' | '.join(SKILLS)} |\n" + "| --- " * (len(SKILLS) + 2) + "|\n",
    ]
    for skill in FORGOTTEN:
        for ratio in RATIOS:
            if (row := bench.rows.get(_key(skill, ratio))) is None:
                continue
            shares = {name: f"{row[name] / base[name]:.3f}" for name in SKILLS}
            shares[skill] = f"**{shares[skill]}**"
            lines.append(f"| {skill} | {ratio:.1%} | {' | '.join(shares.values())} |\n")
    return "".join(lines)


def _key(skill: str, ratio: float) -> str:
    return f"selective pruning {skill} {ratio}"
