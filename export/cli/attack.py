"""`bakeout attack`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.cli.console import emit_json, emit_table, progress
from bakeout.export.cli.grades import columns_option, graders, named_columns
from bakeout.export.cli.options import PATH, directories, json_output

if TYPE_CHECKING:
    from bakeout.export.attacks.attack import AttackRow
    from bakeout.models.plan import Positions


@click.command()
@directories
@click.option("--data", type=PATH, multiple=True, required=True, help="JSONL of forgotten prompts; repeatable.")
@click.option("--retain", "mixed", type=PATH, help="JSONL of other prompts, for batches with mixed prompts.")
@columns_option
@click.option("--grade", "grades", multiple=True, metavar="[NAME=]GRADER", help="As of `evaluate`; repeatable.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Where answers are cut off.")
@click.option("--attack", "attacks", multiple=True, help="Run this attack only, repeatable; by default all.")
@click.option(
    "--positions",
    type=click.Choice(["query", "step", "every"]),
    multiple=True,
    help="Measure Key Space Detection with this setting too, repeatable; needs --base.",
)
@click.option("--base", type=PATH, help="The base model: its checkpoint's directory or hub id, or an ONNX one.")
@click.option("--prompts", type=click.IntRange(1), default=200, show_default=True, help="Prompts of each file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the variants.")
@click.option("--figures", type=PATH, help="Write the figures of a report to this file; it must not exist.")
@json_output
def attack(
    directories: tuple[Path, ...],
    data: tuple[Path, ...],
    mixed: Path | None,
    columns: tuple[str, ...],
    grades: tuple[str, ...],
    max_new_tokens: int | None,
    attacks: tuple[str, ...],
    positions: tuple[Positions, ...],
    base: Path | None,
    prompts: int,
    seed: int,
    figures: Path | None,
    machine: bool,
) -> None:
    """Rephrase forgotten prompts, and count how many the artifacts answer.

    Variants of each prompt: suffixes, prefixes, whitespace, case, punctuation, a few-shot context; paraphrases and
    translations if the rows contain them (`paraphrases`, `translations`: lists of strings); for conversations other
    system prompts, earlier turns, instructions, thanks, lead-ins, stories, quotations, translations and roles. Other
    ways of feeding the same prompt: token by token, in chunks, and in a batch with the prompts of --retain.

    A prompt gets through if it is not refused. For an artifact that cannot refuse, it gets through if the answer is
    correct: exactly the row's response, or what --grade takes for right.
    """
    from bakeout.export.attacks.attack import ATTACKS, attack, attacks_figure
    from bakeout.export.report.figures_file import figures_json
    from bakeout.models.files.writing import require_new, write_file

    if figures is not None:
        require_new(figures)
    named = [path.stem for path in (*data, *([] if mixed is None else [mixed]))]
    chosen_columns = named_columns(columns, named)
    with progress() as track:
        rows = attack(
            directories,
            data,
            attacks=attacks or ATTACKS,
            positions=positions,
            base=base,
            mixed=mixed,
            columns=chosen_columns,
            grades=graders(grades, [path.stem for path in data]),
            max_new_tokens=max_new_tokens,
            prompts=prompts,
            seed=seed,
            track=track,
        )
    if figures is not None:
        source = f"bakeout attack, {prompts} prompts"
        content = figures_json([attacks_figure(rows, source)])
        write_file(figures, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if machine:
        emit_json({"rows": [row.as_json() for row in rows]})
    else:
        _print(rows)


def _print(rows: Sequence[AttackRow]) -> None:
    """A table for each file, with a line for each attack and a column for each artifact."""
    for name in dict.fromkeys(row.data for row in rows):
        row_of: Mapping[tuple[str, str], AttackRow] = {
            (row.attack, row.target): row for row in rows if row.data == name
        }
        targets = list(dict.fromkeys(target for _, target in row_of))
        table = [
            [attack, *(_cell(row_of.get((attack, target))) for target in targets)]
            for attack in dict.fromkeys(attack for attack, _ in row_of)
        ]
        emit_table(["attack", *targets], table, title=f"{name}: share that gets through (answered correctly)")


def _cell(row: AttackRow | None) -> str:
    return "" if row is None else f"{row.through / row.prompts:.1%} ({row.correct / row.prompts:.1%})"
