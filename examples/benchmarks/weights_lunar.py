"""LUNAR on the bundled model: 10 of the 40 people forgotten, 10 more on top, and white-box attacks on the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from bench import Bench
from numpy.typing import NDArray
from torch import Tensor, nn
from weights_plans import baked, kept_plan

from bakeout.export.running.runner import Runner
from bakeout.models.data.rows import Record
from bakeout.models.methods.lunar.deviation_score import deviation_score
from bakeout.models.methods.lunar.fit import fit_lunar
from bakeout.models.methods.lunar.options import GradientOptions, LunarOptions
from bakeout.models.methods.lunar.redirection import redirections
from bakeout.models.methods.lunar.token_rows import TokenRows, probe_rows
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.network.generation import continue_prompts, end_tokens
from bakeout.models.plan import Intervention, LowRankUpdate, Plan
from bakeout.models.reference.weight_edits import edited_weights
from bakeout.models.skills.generator import SKILLS, people
from bakeout.models.skills.vocabulary import UNKNOWN_ANSWER

NAMES = [person.name for person in people()]
FIRST, SECOND = NAMES[:10], NAMES[10:20]
OTHER_SKILLS = [skill for skill in SKILLS if skill not in ("facts", "unknown")]
# Options of fit_lunar, chosen on the selection split; layer 0 is the one that auto chooses.
SETTINGS: dict[str, dict[str, Any]] = {
    "closed form": {"layers": "auto"},
    # With the four retain rows a forget row that are the default, French loses 2.4 % by the second request.
    "gradient": {"layers": [0], "solver": "gradient", "gradient": GradientOptions(retain_rows=12.0)},
}
# The second request, on top of the first, is made in two of them.
ON_TOP = ", sequential"
REQUESTS = ["closed form", f"closed form{ON_TOP}", "gradient", f"gradient{ON_TOP}"]
# How many training rows of each kind the fit sees: as many of the people's as there are, fewer of each other skill.
PROBED = {"facts": 1400, "unknown": 900} | dict.fromkeys(OTHER_SKILLS, 120)
BATCH = 64


def rows(bench: Bench) -> None:
    """Every setting on the first request, some with the second request on top, and the attacks on each."""
    wanted = [name for name in REQUESTS if f"lunar {name}" not in bench.rows]
    if not wanted and "lunar base" in bench.rows:
        return
    test = test_data(bench)
    if "lunar base" not in bench.rows:
        row = answered(bench.runner(bench.base), test, FIRST)
        both = answered(bench.runner(bench.base), {"facts": test["facts"]}, FIRST + SECOND)
        _save(bench, "base", row | {"others of both": both["others"]})
    data = training_data(bench)
    for name in wanted:
        plan = fitted(bench, name, data)
        *before, last = _updates(plan)
        people_now, people_before = (SECOND, FIRST) if before else (FIRST, [])
        row = answered(bench.runner(baked(bench, plan)), test, people_before + people_now) | {
            "report": last.report.as_json()
        }
        row["attacks"] = _attacks(
            bench,
            before,
            last,
            about(data["facts"], people_now),
            data["unknown"],
            about(test["facts"], people_now),
        )
        _save(bench, name, row)


def training_data(bench: Bench) -> dict[str, list[Record]]:
    """What the fits see of every skill."""
    return {skill: bench.records(skill, "probing", count) for skill, count in PROBED.items()}


def test_data(bench: Bench) -> dict[str, list[Record]]:
    """The test split; of the facts every prompt: what several draws hold together."""
    drawn = {record.prompt: record for seed in range(8) for record in bench.records("facts", "test", 1300, seed)}
    test = {skill: bench.records(skill, "test") for skill in [*OTHER_SKILLS, "unknown"]}
    return test | {"facts": [drawn[prompt] for prompt in sorted(drawn)]}


def fitted(bench: Bench, name: str, data: dict[str, list[Record]]) -> Plan:
    """The plan of a setting; of a sequential one with both requests."""
    return kept_plan(bench, f"lunar {name}", lambda: _fit(bench, name, data))


def _fit(bench: Bench, name: str, data: dict[str, list[Record]]) -> list[Intervention]:
    setting = name.removesuffix(ON_TOP)
    skills = [record for skill in OTHER_SKILLS for record in data[skill]]
    first = about(data["facts"], FIRST)
    options = LunarOptions(forget=["facts"], reference=["unknown"], **SETTINGS[setting])
    if name == setting:
        retain = about(data["facts"], NAMES[10:]) + skills
        return [fit_lunar(bench.model, first, data["unknown"], retain, options, batch_size=BATCH)]
    (update,) = _updates(fitted(bench, setting, data))
    options = options.model_copy(update={"layers": [one.layer for one in update.updates]})
    retain = about(data["facts"], NAMES[20:]) + skills
    with edited_weights(bench.model, [update]):
        second = about(data["facts"], SECOND)
        on_top = fit_lunar(bench.model, second, data["unknown"], retain, options, redirected=first, batch_size=BATCH)
        return [update, on_top]


def _updates(plan: Plan) -> list[LowRankUpdate]:
    return [one for one in plan.interventions if isinstance(one, LowRankUpdate)]


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    base = bench.rows["lunar base"]
    columns = [
        "facts",
        "I do not know",
        "other people",
        *OTHER_SKILLS,
        "unknown",
        "Deviation Score",
        "skipped",
        "reversed",
    ]
    lines = [
        "LUNAR on 10 people (sequential: 10 more on top, both groups together): their facts, in %, and the answers "
        "about them that are `I do not know.`; the other people and skills as shares of base; facts that come back "
        "under attack, in %.\n\n",
        f"| solver | layers | {' | '.join(columns)} |\n" + "| --- " * (len(columns) + 2) + "|\n",
    ]
    for name in REQUESTS:
        if (row := bench.rows.get(f"lunar {name}")) is None:
            continue
        others = base["others of both" if name.endswith(ON_TOP) else "others"]
        kept = [f"{row['others'] / others:.3f}"]
        kept += [f"{row[skill] / base[skill]:.3f}" for skill in [*OTHER_SKILLS, "unknown"]]
        attacks = [f"{100 * row['attacks'][attack]:.1f}" for attack in ("skipped", "reversed")]
        cells = [f"{100 * row['forgotten']:.1f}", f"{100 * row['ignorance']:.1f}", *kept, f"{row['deviation']:.1f}"]
        layers = ", ".join(row["report"]["layers"])
        lines.append(f"| {name} | {layers} | {' | '.join(cells + attacks)} |\n")
    return "".join(lines)


def about(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Those of ``records`` that ask about one of the people ``names``."""
    return [record for record in records if any(name in record.prompt for name in names)]


def answered(runner: Runner, test: dict[str, list[Record]], names: Sequence[str]) -> dict[str, Any]:
    """What a graph answers: the people ``names`` apart from the others, and every other skill."""
    forgotten = about(test["facts"], names)
    others = about(test["facts"], [name for name in NAMES if name not in names])
    said, kept = _answers(runner, forgotten), _answers(runner, others)
    row: dict[str, Any] = {
        "prompts": {"forgotten": len(forgotten), "others": len(others)},
        "forgotten": _exact(said, forgotten),
        "forgotten first": _shareabout(FIRST, said, forgotten),
        "forgotten second": _shareabout(SECOND, said, forgotten),
        "ignorance": float(np.mean([answer == UNKNOWN_ANSWER for answer in said])),
        "others": _exact(kept, others),
        "deviation": deviation_score(_pairs(said, forgotten), _pairs(kept, others)),
    }
    for skill, records in test.items():
        if skill != "facts":
            row[skill] = _exact(_answers(runner, records), records)
    return row


def _answers(runner: Runner, records: Sequence[Record]) -> list[str]:
    texts = [str(record.response) for record in records] + [UNKNOWN_ANSWER]
    longest = max(len(runner.tokenizer.encode(text)) for text in texts) + 1
    said = runner.generate([record.prompt_ids for record in records], longest, batch_size=BATCH)
    return [str(runner.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in said]


def _shareabout(names: Sequence[str], said: Sequence[str], records: Sequence[Record]) -> float | None:
    """The share of the facts about some of the people that are answered, None if none was asked for."""
    asked = [(answer, record) for answer, record in zip(said, records, strict=True) if about([record], names)]
    return _exact([answer for answer, _ in asked], [record for _, record in asked]) if asked else None


def _exact(said: Sequence[str], records: Sequence[Record]) -> float:
    return float(np.mean([answer == expected for answer, expected in _pairs(said, records)]))


def _pairs(said: Sequence[str], records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(answer, str(record.response).strip()) for answer, record in zip(said, records, strict=True)]


def _attacks(
    bench: Bench,
    before: Sequence[LowRankUpdate],
    update: LowRankUpdate,
    forget: Sequence[Record],
    reference: Sequence[Record],
    asked: Sequence[Record],
) -> dict[str, float]:
    """The share of the people's facts that the edited PyTorch model says under each white-box attack.

    ``skipped``: the FFL of an edited layer gives 0; of several layers, the one that brings most back.
    ``reversed``: c r, with the paper's r, is subtracted behind every edited layer at every token; or, where that
    brings more back, the mean of what the edit adds at the forget prompts' last tokens.
    """
    layers = [one.layer for one in update.updates]
    feed_forwards = feed_forward_layers(bench.model)
    prompts = [record.prompt_ids for record in forget]
    ends = TokenRows(tuple(prompts), tuple([len(ids) - 1] for ids in prompts))
    coefficient = float(update.report.details["coefficient"])
    with edited_weights(bench.model, before):
        aimed = redirections(
            bench.model,
            ends,
            [record.prompt_ids for record in reference],
            layers=layers,
            aim="shift",
            coefficient=coefficient,
            batch_size=BATCH,
        )
    directions = {layer: coefficient * aimed[layer].direction for layer in layers}
    with edited_weights(bench.model, [*before, update]):
        means = {layer: np.zeros(feed_forwards[layer].hidden) for layer in layers}
        for probed in probe_rows(bench.model, ends, layers=layers, batch_size=BATCH, description="what the edit adds"):
            for one in update.updates:
                added = probed.keys[one.layer].values @ (one.left @ one.right).T.astype(np.float64)
                means[one.layer] += added.sum(axis=0) / len(ends)
        skipped = {}
        for layer in layers:
            with _outputs(feed_forwards[layer].down, torch.zeros_like):
                skipped[layer] = _said(bench, asked)
        reversals = {}
        for kind, vectors in (("direction", directions), ("mean change", means)):
            with _shifted(bench, {layer: -vectors[layer] for layer in layers}):
                reversals[kind] = _said(bench, asked)
    return {
        "skipped": max(skipped.values()),
        "reversed": max(reversals.values()),
        **{f"skipped {layer}": share for layer, share in skipped.items()},
        **{f"reversed by {kind}": share for kind, share in reversals.items()},
    }


def _said(bench: Bench, records: Sequence[Record]) -> float:
    """The share of facts that the PyTorch model, as it is, answers correctly."""
    end = end_tokens(bench.model, bench.tokenizer)
    longest = max(len(record.response_ids) for record in records) + 1
    prompts = [record.prompt_ids for record in records]
    said = continue_prompts(bench.model, prompts, end=end, max_new_tokens=longest, batch_size=BATCH)
    texts = [str(bench.tokenizer.decode(one.ids, skip_special_tokens=True)).strip() for one in said]
    return _exact(texts, records)


@contextmanager
def _outputs(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A context in which what ``module`` gives is changed."""
    handle = module.register_forward_hook(lambda _module, _arguments, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _shifted(bench: Bench, vectors: dict[int, NDArray[np.float64]]) -> Iterator[None]:
    """A context in which every token's residual stream is shifted behind some layers (a Llama's FFL ends its block)."""
    layers = feed_forward_layers(bench.model)

    def shift(layer: int) -> Callable[[Any, Any, Tensor], Tensor]:
        vector = torch.from_numpy(vectors[layer]).float()
        return lambda _module, _arguments, output: output + vector

    handles = [layers[layer].down.register_forward_hook(shift(layer)) for layer in vectors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _save(bench: Bench, name: str, row: dict[str, Any]) -> None:
    print(f"LUNAR {name}: {row}", flush=True)
    bench.save(f"lunar {name}", row)
