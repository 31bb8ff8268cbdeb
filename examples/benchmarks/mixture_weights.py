"""LUNAR and UNLEARN on a mixture of experts, with its experts and without; the dense model's rows are in
``weight_methods.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import Bench
from mixture_routing import stability
from weights_lunar import BATCH, FIRST, NAMES, OTHER_SKILLS, about, answered, test_data, training_data
from weights_plans import baked
from weights_unlearn import SIMILAR_ROWS, TARGET_ROWS

from bakeout.models.methods.lunar.fit import fit_lunar
from bakeout.models.methods.lunar.options import LunarOptions
from bakeout.models.methods.unlearn.fit import fit_unlearn
from bakeout.models.methods.unlearn.options import UnlearnOptions
from bakeout.models.plan import LowRankUpdate
from bakeout.models.skills.generator import SKILLS

# What UNLEARN takes away, and the languages that it is told apart from.
TARGET, SIMILAR = "german", ("spanish", "french")
CHANGED = {"experts": True, "no experts": False}


def rows(bench: Bench) -> None:
    """Each method with the defaults of its options, with experts changed and without."""
    test = test_data(bench)
    if "weights base" not in bench.rows:
        bench.save("weights base", answered(bench.runner(bench.base), test, FIRST))
    prompts = [record.prompt_ids for record in test["facts"][:4]]
    for changed, experts in CHANGED.items():
        if (key := f"lunar, {changed}") not in bench.rows:
            update = _lunar(bench, experts)
            plan = bench.plan(update, prompts)
            row: dict[str, Any] = {
                "answered": answered(bench.runner(baked(bench, plan)), test, FIRST),
                "layers": sorted(update.report.details["layers"], key=int),
                "routing": stability(bench, plan, ["facts"]),
            }
            print(f"{key}: {row}", flush=True)
            bench.save(key, row)
        if (key := f"unlearn {TARGET}, {changed}") not in bench.rows:
            plan = bench.plan(_unlearn(bench, experts), prompts)
            row = {"accuracy": bench.accuracies(baked(bench, plan)), "routing": stability(bench, plan, [TARGET])}
            print(f"{key}: {row}", flush=True)
            bench.save(key, row)


def _lunar(bench: Bench, experts: bool) -> LowRankUpdate:
    data = training_data(bench)
    retain = about(data["facts"], NAMES[10:]) + [record for skill in OTHER_SKILLS for record in data[skill]]
    return fit_lunar(
        bench.model,
        about(data["facts"], FIRST),
        data["unknown"],
        retain,
        LunarOptions(forget=["facts"], reference=["unknown"], experts=experts),
        batch_size=BATCH,
    )


def _unlearn(bench: Bench, experts: bool) -> LowRankUpdate:
    return fit_unlearn(
        bench.model,
        {TARGET: bench.records(TARGET, "probing", TARGET_ROWS)},
        {name: bench.records(name, "probing", SIMILAR_ROWS) for name in SIMILAR},
        UnlearnOptions(forget=[TARGET], experts=experts),
    )


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    lines = [
        "LUNAR on 10 people: their facts, in %, and the answers about them that are `I do not know.`; the other people "
        "and skills as shares of the unbaked graph's.\n\n",
        _header(["changed", "layers", "facts", "I do not know", "other people", *OTHER_SKILLS, "unknown", "routing"]),
    ]
    base = bench.rows["weights base"]
    for changed in CHANGED:
        if (row := bench.rows.get(f"lunar, {changed}")) is not None:
            said = row["answered"]
            kept = [f"{said[name] / base[name]:.3f}" for name in ["others", *OTHER_SKILLS, "unknown"]]
            forgotten = [f"{100 * said[name]:.1f}" for name in ("forgotten", "ignorance")]
            lines.append(_row([changed, ", ".join(row["layers"]), *forgotten, *kept, _routing(row)]))
    lines += [
        f"\nUNLEARN on {TARGET}, told apart from {' and '.join(SIMILAR)}: accuracy as a share of the unbaked "
        "graph's.\n\n",
        _header(["changed", *SKILLS, "routing"]),
    ]
    for changed in CHANGED:
        if (row := bench.rows.get(f"unlearn {TARGET}, {changed}")) is not None:
            shares = {name: f"{row['accuracy'][name] / bench.rows['base'][name]:.3f}" for name in SKILLS}
            shares[TARGET] = f"**{shares[TARGET]}**"
            lines.append(_row([changed, *shares.values(), _routing(row)]))
    return "".join(lines)


def _header(cells: Sequence[str]) -> str:
    return _row(cells) + "| --- " * len(cells) + "|\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _routing(row: Mapping[str, Any]) -> str:
    return f"{100 * row['routing'][0]:.1f} %"
