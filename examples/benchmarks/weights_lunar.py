"""LUNAR on the bundled model: 10 of the 40 people forgotten, 10 more on top, and white-box attacks on the result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from bench import Bench
from numpy.typing import NDArray
from torch import Tensor, nn

from bakeout.export.bake import BakeOptions, bake
from bakeout.export.runtime import Runner
from bakeout.models.canary import measure_canary
from bakeout.models.data import Record
from bakeout.models.families import feed_forward_layers
from bakeout.models.generation import continue_prompts, end_tokens
from bakeout.models.methods.deviation_score import deviation_score
from bakeout.models.methods.lunar import fit_lunar
from bakeout.models.methods.redirection import redirections
from bakeout.models.methods.token_rows import TokenRows, probe_rows
from bakeout.models.plan import LowRankUpdate, Plan
from bakeout.models.skills.generator import SKILLS, people
from bakeout.models.skills.vocabulary import UNKNOWN_ANSWER
from bakeout.models.weight_edits import edited_weights

NAMES = [person.name for person in people()]
FIRST, SECOND = NAMES[:10], NAMES[10:20]
OTHER_SKILLS = [skill for skill in SKILLS if skill not in ("facts", "unknown")]
# Options of fit_lunar, chosen on the selection split; layer 0 is the one that auto chooses.
SETTINGS: dict[str, dict[str, Any]] = {
    "closed form": {"layers": "auto"},
    "gradient": {"layers": [0], "solver": "gradient"},
    "closed form, the paper's shift": {"layers": [0], "aim": "shift", "coefficient": 2.0},
    "gradient, the paper's shift": {"layers": [0], "aim": "shift", "coefficient": 2.0, "solver": "gradient"},
    "closed form, layers 0 and 2": {"layers": [0, 2]},
}
# Those that the second request is made on as well.
SEQUENTIAL = ["closed form", "gradient"]
# How many training rows of each kind the fit sees: as many of the people's as there are, fewer of each other skill.
PROBED = {"facts": 1400, "unknown": 900} | dict.fromkeys(OTHER_SKILLS, 120)
BATCH = 64


def rows(bench: Bench) -> None:
    """Every setting on the first request, some with the second request on top, and the attacks on each."""
    wanted = ["base", *SETTINGS, *map(_sequential, SEQUENTIAL)]
    if all(f"lunar {name}" in bench.rows for name in wanted):
        return
    data = {skill: bench.records(skill, "probing", count) for skill, count in PROBED.items()}
    test = {skill: bench.records(skill, "test") for skill in [*OTHER_SKILLS, "unknown"]}
    test["facts"] = _every_fact(bench)
    if "lunar base" not in bench.rows:
        row = _answered(Runner(bench.base), test, FIRST)
        both = _answered(Runner(bench.base), {"facts": test["facts"]}, FIRST + SECOND)
        _save(bench, "base", row | {"others of both": both["others"]})
    skills = [record for skill in OTHER_SKILLS for record in data[skill]]
    first, second = _about(data["facts"], FIRST), _about(data["facts"], SECOND)
    unknown = data["unknown"]
    for name, options in SETTINGS.items():
        pending = [one for one in (name, _sequential(name)) if one in wanted and f"lunar {one}" not in bench.rows]
        if not pending:
            continue
        if known := bench.rows.get(f"lunar {name}"):
            options = options | {"layers": list(map(int, known["report"]["layers"]))}
        retain = _about(data["facts"], NAMES[10:]) + skills
        update = fit_lunar(bench.model, first, unknown, retain, batch_size=BATCH, **options)
        if name in pending:
            row = _measured(bench, (update,), test, FIRST)
            row["attacks"] = _attacks(bench, (), update, first, unknown, _about(test["facts"], FIRST))
            _save(bench, name, row)
        if _sequential(name) in pending:
            retain = _about(data["facts"], NAMES[20:]) + skills
            with edited_weights(bench.model, [update]):
                more = fit_lunar(bench.model, second, unknown, retain, redirected=first, batch_size=BATCH, **options)
            row = _measured(bench, (update, more), test, FIRST + SECOND)
            row["attacks"] = _attacks(bench, (update,), more, second, unknown, _about(test["facts"], SECOND))
            _save(bench, _sequential(name), row)


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
    for name in [*SETTINGS, *map(_sequential, SEQUENTIAL)]:
        if (row := bench.rows.get(f"lunar {name}")) is None:
            continue
        others = base["others of both" if name in map(_sequential, SEQUENTIAL) else "others"]
        kept = [f"{row['others'] / others:.3f}"]
        kept += [f"{row[skill] / base[skill]:.3f}" for skill in [*OTHER_SKILLS, "unknown"]]
        attacks = [f"{100 * row['attacks'][attack]:.1f}" for attack in ("skipped", "reversed")]
        cells = [f"{100 * row['forgotten']:.1f}", f"{100 * row['ignorance']:.1f}", *kept, f"{row['deviation']:.1f}"]
        layers = ", ".join(row["report"]["layers"])
        lines.append(f"| {name} | {layers} | {' | '.join(cells + attacks)} |\n")
    return "".join(lines)


def _sequential(name: str) -> str:
    return f"{name}, sequential"


def _every_fact(bench: Bench) -> list[Record]:
    """Every test prompt about the people: what several draws hold together."""
    drawn = {record.prompt: record for seed in range(8) for record in bench.records("facts", "test", 1300, seed)}
    return [drawn[prompt] for prompt in sorted(drawn)]


def _about(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    return [record for record in records if any(name in record.prompt for name in names)]


def _measured(
    bench: Bench, updates: tuple[LowRankUpdate, ...], test: dict[str, list[Record]], names: Sequence[str]
) -> dict[str, Any]:
    """The artifact that carries ``updates``, measured on the test split under ONNX Runtime."""
    with edited_weights(bench.model, updates):
        canary = measure_canary(bench.model, updates, [record.prompt_ids for record in test["facts"][:4]])
    directory = bench.output / "artifact"
    shutil.rmtree(directory, ignore_errors=True)
    bake(bench.base, Plan(bench.identity, updates, canary, {"data": {}, "versions": {}}), directory, BakeOptions())
    return _answered(Runner(directory), test, names) | {"report": dict(updates[-1].report)}


def _answered(runner: Runner, test: dict[str, list[Record]], names: Sequence[str]) -> dict[str, Any]:
    """What a graph answers: the people ``names`` apart from the others, and every other skill."""
    forgotten = _about(test["facts"], names)
    others = _about(test["facts"], [name for name in NAMES if name not in names])
    said, kept = _answers(runner, forgotten), _answers(runner, others)
    row: dict[str, Any] = {
        "prompts": {"forgotten": len(forgotten), "others": len(others)},
        "forgotten": _exact(said, forgotten),
        "forgotten first": _share_about(FIRST, said, forgotten),
        "forgotten second": _share_about(SECOND, said, forgotten),
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
    longest = max(len(runner.tokenizer(text).input_ids) for text in texts) + 1
    said = runner.generate([record.prompt_ids for record in records], longest, batch_size=BATCH)
    return [str(runner.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in said]


def _share_about(names: Sequence[str], said: Sequence[str], records: Sequence[Record]) -> float | None:
    """The share of the facts about some of the people that are said, None where none was asked for."""
    asked = [(answer, record) for answer, record in zip(said, records, strict=True) if _about([record], names)]
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
    coefficient = float(update.report["coefficient"])
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
                added = probed.keys[one.layer] @ (one.left @ one.right).T.astype(np.float64)
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
    """The share of facts that the PyTorch model, as it is, answers rightly."""
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
