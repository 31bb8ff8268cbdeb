"""`bakeout demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.cli.console import emit_json, emit_table, progress, show
from bakeout.export.cli.options import PATH, json_output

if TYPE_CHECKING:
    from bakeout.export.evaluation.rows import Row
    from bakeout.export.pipeline.demo import Demo


@click.command()
@click.option(
    "-o", "--output", type=PATH, default=Path("bakeout-demo"), show_default=True, help="Directory of everything."
)
@click.option("--model", type=PATH, help="Another checkpoint of the skills model than the bundled one.")
@json_output
def demo(output: Path, model: Path | None, machine: bool) -> None:
    """Make the bundled model forget arithmetic, in two ways.

    Builds two artifacts (Neuron Adjust, Key Space Detection), and shows how every skill changed.
    """
    from bakeout.export.pipeline.demo import run_demo

    with progress() as track:
        result = run_demo(output, model, track=track)
    if machine:
        emit_json({"rows": [row.as_json() for row in result.rows]})
    else:
        print_demo(result)


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
