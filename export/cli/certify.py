"""`bakeout certify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bakeout.export.certificate.protocol import FULL, PARTS, QUICK, Part
from bakeout.export.cli.console import emit_json, emit_table, progress, show
from bakeout.export.cli.grades import columns_option, graders, named_columns
from bakeout.export.cli.options import PATH, json_output

_DATA: dict[str, Any] = {"type": PATH, "multiple": True}


@click.command()
@click.argument("directory", type=PATH)
@click.option("--base", required=True, help="The base model: its checkpoint's directory or hub id, or an ONNX one.")
@click.option("--forget", required=True, help="JSONL of fresh prompts and responses to forget; repeatable.", **_DATA)
@click.option("--retain", required=True, help="JSONL of fresh prompts and responses to keep; repeatable.", **_DATA)
@click.option("--over", type=PATH, help="With a policy for ONNX Runtime: the artifact that it is an adapter of.")
@click.option("--strangers", help="JSONL of prompts that the recipe names nowhere; repeatable.", **_DATA)
@click.option("--fitted", help="JSONL of rows that the plan was fitted on; repeatable.", **_DATA)
@click.option("--real-authors", type=PATH, help="TOFU's real authors, for its Model Utility.")
@click.option("--world-facts", type=PATH, help="TOFU's world facts, for its Model Utility.")
@click.option("--tofu-reference", type=PATH, help="TOFU_EVAL.json of a model that never saw what is forgotten.")
@columns_option
@click.option("--grade", "grades", multiple=True, metavar="[NAME=]GRADER", help="As of `evaluate`; repeatable.")
@click.option("--quick", is_flag=True, help="Fewer rows, prompts and steps: minutes for a small model.")
@click.option("--only", "parts", type=click.Choice(PARTS), multiple=True, help="Parts to measure; by default all.")
@click.option("--journal", type=PATH, help="Write every step to this file at once, and go on with those in it.")
@click.option("--salt", type=PATH, help="Salt names and digests of data, as `bake --hide` does: the file of the salt.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Where answers are cut off.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@json_output
def certify(
    directory: Path,
    base: str,
    forget: tuple[Path, ...],
    retain: tuple[Path, ...],
    over: Path | None,
    strangers: tuple[Path, ...],
    fitted: tuple[Path, ...],
    real_authors: Path | None,
    world_facts: Path | None,
    tofu_reference: Path | None,
    columns: tuple[str, ...],
    grades: tuple[str, ...],
    quick: bool,
    parts: tuple[Part, ...],
    journal: Path | None,
    salt: Path | None,
    max_new_tokens: int | None,
    batch_size: int,
    machine: bool,
) -> None:
    """Run a fixed protocol on an artifact, and write a certificate of forgetting into it.

    Forgetting and keeping beside the base model; Leak@k of drawn answers; the same in fp16, int8 and int4; attacks;
    relearning curves of edited weights; perplexity, divergence and over-refusal; what the plan gives away; TOFU's
    metrics. A figure comes with protocol version, seed, data digests, runtime and precision. What was not
    measured is told.
    """
    from bakeout.export.certificate.certify import certify

    names = [path.stem for path in (*forget, *retain)]
    with progress() as track:
        certificate = certify(
            directory,
            base,
            forget,
            retain,
            over=over,
            strangers=strangers,
            fitted=fitted,
            real_authors=real_authors,
            world_facts=world_facts,
            tofu_reference=tofu_reference,
            columns=named_columns(columns, [*names, *(path.stem for path in (*strangers, *fitted))]),
            grades=graders(grades, names),
            protocol=QUICK if quick else FULL,
            parts=parts or PARTS,
            journal=journal,
            salt=salt,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            track=track,
        )
    content = certificate.as_json()
    if machine:
        emit_json(content)
    else:
        _print(content, directory)


def _print(content: Mapping[str, Any], directory: Path) -> None:
    figures = content["figures"]
    for section in dict.fromkeys(figure["section"] for figure in figures):
        rows = [
            [
                figure["name"],
                figure["slice"],
                figure["precision"],
                str(figure["n"]),
                _cell(figure, "base"),
                _cell(figure, ""),
            ]
            for figure in figures
            if figure["section"] == section
        ]
        emit_table(["figure", "on", "precision", "n", "base", "artifact"], rows, title=section, figures=False)
    for missing in content["not_measured"]:
        show(f"not measured: {missing['section']}, {missing['name']}: {missing['why']}".replace("\n", " "))
    show(f"{directory}: certificate.json, and a section of README.md")


def _cell(figure: Mapping[str, Any], prefix: str) -> str:
    value, interval = figure.get(prefix or "value"), figure.get(f"{prefix}_interval" if prefix else "interval")
    if value is None:
        return "-"
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")
