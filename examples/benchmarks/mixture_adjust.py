"""Neuron Adjust on a mixture of experts: the frontier over beta; the dense model's is in ``skills.py``."""

from __future__ import annotations

from bench import Bench
from mixture_routing import stability
from weights_plans import baked

from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Use
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.neuron_adjust.fit import fitter
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.skills.generator import SKILLS

FORGOTTEN = ("math", "code", "german")
RATIOS = (0.03, 0.1, 0.2, 0.3, 0.4)
# Rows of each skill that neurons are measured on.
_PROBED = 300


def rows(bench: Bench) -> None:
    """Each skill, with the share of adjusted neurons growing."""
    records: dict[str, dict[Use, list[Record]]] = {
        skill: {"probe": bench.records(skill, "probing", _PROBED)} for skill in SKILLS
    }
    fitting = Fitting(bench.model, bench.tokenizer, data=SKILLS, rows=records, batch_size=64)
    for skill in FORGOTTEN:
        fit = fitter(NeuronAdjustOptions(forget=[skill]), fitting)
        for ratio in RATIOS:
            if (key := f"na {skill} {ratio}") in bench.rows:
                continue
            plan = bench.plan(fit({"ratio": ratio}), [record.prompt_ids for record in records[skill]["probe"][:4]])
            row = {"accuracy": bench.accuracies(baked(bench, plan)), "routing": stability(bench, plan, [skill])}
            print(f"{key}: {row}", flush=True)
            bench.save(key, row)


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    lines = ["| forgotten | β | " + " | ".join(SKILLS) + " | routing |\n" + "| --- " * (len(SKILLS) + 3) + "|\n"]
    for skill in FORGOTTEN:
        for ratio in RATIOS:
            if (row := bench.rows.get(f"na {skill} {ratio}")) is not None:
                shares = [f"{row['accuracy'][name] / bench.rows['base'][name]:.3f}" for name in SKILLS]
                shares[SKILLS.index(skill)] = f"**{shares[SKILLS.index(skill)]}**"
                kept = f"{100 * row['routing'][0]:.1f} %"
                lines.append(f"| {skill} | {ratio:.0%} | {' | '.join(shares)} | {kept} |\n")
    return "".join(lines)
