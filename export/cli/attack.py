"""`bakeout attack`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bakeout.export.console import emit_json, emit_table, progress

if TYPE_CHECKING:
    from bakeout.export.attacks.attack import AttackRow
    from bakeout.models.plan import Positions

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("directories", type=_PATH, nargs=-1, required=True, metavar="DIR...")
@click.option("--data", type=_PATH, multiple=True, required=True, help="JSONL of what is forgotten; repeatable.")
@click.option("--retain", "mixed", type=_PATH, help="JSONL of something else, to mix into batches.")
@click.option("--attack", "attacks", multiple=True, help="One attack alone, repeatable; by default all of them.")
@click.option(
    "--positions",
    type=click.Choice(["query", "step", "every"]),
    multiple=True,
    help="Measure Key Space Detection with this setting too; repeatable. Takes --base.",
)
@click.option("--base", type=_PATH, help="The base model: its checkpoint's directory, or an ONNX one.")
@click.option("--prompts", type=click.IntRange(1), default=200, show_default=True, help="Prompts of each file.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the variants.")
@click.option("--figures", type=_PATH, help="Write what a report shows of it to this file.")
@click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
def attack(
    directories: tuple[Path, ...],
    data: tuple[Path, ...],
    mixed: Path | None,
    attacks: tuple[str, ...],
    positions: tuple[Positions, ...],
    base: Path | None,
    prompts: int,
    seed: int,
    figures: Path | None,
    machine: bool,
) -> None:
    """Ask artifacts the same in other forms, and count what gets through.

    Suffixes, prefixes, whitespace, case, punctuation, a few-shot context; paraphrases and other languages where a row
    brings any (`paraphrases`, `translations`: lists of strings); token by token, in chunks, in a batch with prompts of
    --retain. Through is what is not refused; from an artifact that cannot refuse, what is answered rightly.
    """
    from bakeout.export.attacks.attack import ATTACKS, attack, attacks_figure
    from bakeout.export.report.figures_file import figures_json

    with progress() as track:
        rows = attack(
            directories,
            data,
            attacks=attacks or ATTACKS,
            positions=positions,
            base=base,
            mixed=mixed,
            prompts=prompts,
            seed=seed,
            track=track,
        )
    if figures is not None:
        source = f"bakeout attack, {prompts} prompts"
        content = figures_json([attacks_figure(rows, source)])
        figures.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if machine:
        emit_json({"rows": [row.as_json() for row in rows]})
    else:
        _print(rows)


def _print(rows: Sequence[AttackRow]) -> None:
    """An attack a line, an artifact a column; a table for each file."""
    for name in dict.fromkeys(row.data for row in rows):
        found: Mapping[tuple[str, str], AttackRow] = {(row.attack, row.target): row for row in rows if row.data == name}
        targets = list(dict.fromkeys(target for _, target in found))
        table = [
            [attack, *(_cell(found.get((attack, target))) for target in targets)]
            for attack in dict.fromkeys(attack for attack, _ in found)
        ]
        emit_table(["attack", *targets], table, title=f"{name}: share that gets through (answered rightly)")


def _cell(row: AttackRow | None) -> str:
    return "" if row is None else f"{row.through / row.prompts:.1%} ({row.right / row.prompts:.1%})"
