"""Neuron Adjust with `ratio: auto`: the search against a grid of 40 settings, by the same rule."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

from bench import Bench

from bakeout.export.report.figures_file import Figure
from bakeout.export.tuning.candidates import Meter
from bakeout.export.tuning.frontiers import frontiers
from bakeout.export.tuning.trials import Measured, Trial, choose_trial
from bakeout.export.tuning.tune import tune
from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Use
from bakeout.models.methods.fitting import Fitting, candidate_fitter
from bakeout.models.methods.neuron_adjust import METHOD
from bakeout.models.methods.neuron_adjust.options import SEARCH, NeuronAdjustOptions
from bakeout.models.methods.search_space import Settings
from bakeout.models.skills.generator import SKILLS, examples, write_jsonl

FORGOTTEN = ("math", "german", "code")
TRIALS = 20
# Rows of each of the seven skills: 1,050 prompts for every setting.
PROMPTS = 150
PROBED = 300
GRID: list[Settings] = [
    {"ratio": ratio, "selection": selection, "tokens": tokens, "coin": coin}
    for ratio, selection, tokens, coin in itertools.product(
        (0.03, 0.1, 0.2, 0.3, 0.4), ("difference", "standardised"), ("answer", "all"), ("threshold", "expected")
    )
]


def rows(bench: Bench) -> None:
    """Tune, then measure the grid on the same prompts, then both choices on fresh ones."""
    for skill in FORGOTTEN:
        if f"tuned {skill}" not in bench.rows:
            _tune(bench, skill)
        fitting = _fitting(bench, skill)
        options = NeuronAdjustOptions(forget=[skill], ratio="auto")
        fit = candidate_fitter(METHOD, options, fitting)
        others = [name for name in SKILLS if name != skill]
        measured = bench.rows.get(f"grid {skill}", [])
        found = [*_trials(bench.rows[f"tuned {skill}"]["trials"]), *_trials(measured)]
        meter = Meter(fitting, [skill], others, PROMPTS)
        for settings in GRID[len(measured) :]:
            known = next((one.measured for one in found if one.settings == settings), None)
            trial = Trial(settings, known or meter.measure(fit(settings)))
            measured = [*measured, trial.as_json()]
            bench.save(f"grid {skill}", measured)
        if f"fresh {skill}" not in bench.rows:
            fresh = Meter(_fitting(bench, skill, "test"), [skill], others, PROMPTS)
            best = choose_trial(_trials(measured)).settings
            chosen = bench.rows[f"tuned {skill}"]["chosen"]
            row = {"grid": fresh.measure(fit(best)).as_json(), "tuned": fresh.measure(fit(chosen)).as_json()}
            bench.save(f"fresh {skill}", row)


def _tune(bench: Bench, skill: str) -> None:
    """`bakeout tune` on a recipe that says `ratio: auto` and nothing else."""
    directory = bench.output / "beta"
    (directory / "data").mkdir(parents=True, exist_ok=True)
    data: dict[str, dict[str, str]] = {}
    for name in SKILLS:
        data[name] = {}
        for use, (split, count) in {"probe": ("probing", PROBED), "selection": ("selection", PROMPTS)}.items():
            data[name][use] = f"data/{name}.{use}.jsonl"
            write_jsonl(examples(name, split, count), directory / data[name][use])
    recipe = directory / f"{skill}.yaml"
    entry = {"neuron_adjust": {"forget": skill, "ratio": "auto"}}
    content = {"model": str(bench.checkpoint.resolve()), "data": data, "interventions": [entry]}
    recipe.write_text(json.dumps(content), encoding="utf-8")
    output = directory / f"{skill}.tuned.yaml"
    output.unlink(missing_ok=True)
    wall, processor = time.monotonic(), time.process_time()
    tuned = tune(recipe, output, trials=TRIALS, prompts=PROMPTS)
    row = {
        "trials": [trial.as_json() for trial in tuned.trials[0]],
        "chosen": dict(tuned.filled[0]),
        "seconds": {"wall": time.monotonic() - wall, "processor": time.process_time() - processor},
    }
    print(f"tuned {skill}: {row['chosen']}, {row['seconds']}", flush=True)
    bench.save(f"tuned {skill}", row)


def _fitting(bench: Bench, skill: str, split: str = "selection") -> Fitting:
    rows: dict[str, dict[Use, list[Record]]] = {
        name: {"probe": bench.records(name, "probing", PROBED), "selection": bench.records(name, split, PROMPTS)}
        for name in SKILLS
    }
    return Fitting(bench.model, bench.tokenizer, list(SKILLS), rows)


def _trials(found: Sequence[Any]) -> list[Trial]:
    return [
        Trial(one["settings"], Measured(**{key: value for key, value in one.items() if key != "settings"}))
        for one in found
    ]


def figures(bench: Bench) -> list[Figure]:
    """Forgetting against retaining, over beta."""
    found: list[Figure] = []
    for skill in FORGOTTEN:
        if (row := bench.rows.get(f"tuned {skill}")) is not None:
            trials = _trials([*row["trials"], *bench.rows.get(f"grid {skill}", [])])
            source = f"examples/benchmarks/choosing.py, {PROMPTS * len(SKILLS):,} prompts a setting"
            found += frontiers(trials, row["chosen"], SEARCH, "Neuron Adjust", source)
    return found


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    lines = [
        "| forgotten | by | settings | left | least kept | left, fresh prompts | least kept |\n" + "| --- " * 7 + "|\n"
    ]
    for skill in FORGOTTEN:
        if (row := bench.rows.get(f"tuned {skill}")) is None:
            continue
        fresh = bench.rows.get(f"fresh {skill}", {})
        lines.append(_line(skill, f"search, {len(row['trials'])} evaluations", row["trials"], fresh.get("tuned")))
        if len(grid := bench.rows.get(f"grid {skill}", [])) == len(GRID):
            lines.append(_line(skill, f"grid of {len(GRID)}", grid, fresh.get("grid")))
        lines.append(f"| | | {row['seconds']['processor']:.0f} s of processor time | | | | |\n")
    return "".join(lines)


def _line(skill: str, way: str, found: Sequence[Any], fresh: Any) -> str:
    chosen = choose_trial(_trials(found))
    settings = ", ".join(str(value) for value in chosen.settings.values())
    shares = [chosen.measured.left, chosen.measured.kept]
    if fresh is not None:
        shares += [max(fresh["forget"].values()), min(fresh["retain"].values())]
    cells = [f"{share:.3f}" for share in shares] + [""] * (4 - len(shares))
    return f"| {skill} | {way} | {settings} | {' | '.join(cells)} |\n"
