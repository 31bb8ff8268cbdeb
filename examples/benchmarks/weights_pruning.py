"""Selective Pruning on the bundled model: what is left of every skill, over the share of neurons cut off."""

from __future__ import annotations

from bench import Bench

from bakeout.models.methods.selective_pruning import fit_selective_pruning
from bakeout.models.probing import probe_key_magnitudes
from bakeout.models.skills.generator import SKILLS

FORGOTTEN = ["math", "code"]
RATIOS = [0.005, 0.015, 0.05, 0.1, 0.2]


def rows(bench: Bench) -> None:
    """The frontier over p, the share of all neurons cut off, for arithmetic and for code."""
    wanted = [(skill, ratio) for skill in FORGOTTEN for ratio in RATIOS if _key(skill, ratio) not in bench.rows]
    if not wanted:
        return
    records = {skill: bench.records(skill, "probing") for skill in SKILLS}
    magnitudes = {skill: probe_key_magnitudes(bench.model, records[skill], batch_size=64) for skill in SKILLS}
    for skill, ratio in wanted:
        first, *others = [magnitudes[name] for name in SKILLS if name != skill]
        for other in others:
            first = first.merge(other)
        pruned = fit_selective_pruning(magnitudes[skill], first, ratio=ratio)
        row = bench.artifact_accuracies(pruned, [record.prompt_ids for record in records[skill]])
        print(f"{_key(skill, ratio)}: {row}", flush=True)
        bench.save(_key(skill, ratio), row)


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
