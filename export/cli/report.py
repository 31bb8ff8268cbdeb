"""`bakeout report`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, show
from bakeout.export.cli.options import PATH, directories, json_output


@click.command()
@directories
@click.option("-o", "--output", type=PATH, required=True, help="File of the new page; it must not exist.")
@click.option(
    "--evaluation", "evaluations", type=PATH, multiple=True, help="What `evaluate --json` printed; repeatable."
)
@click.option("--figures", type=PATH, multiple=True, help="Figures of `tune`, `attack` or a benchmark; repeatable.")
@json_output
def report(
    directories: tuple[Path, ...],
    output: Path,
    evaluations: tuple[Path, ...],
    figures: tuple[Path, ...],
    machine: bool,
) -> None:
    """Write one self-contained HTML page about artifacts.

    The edits, receipts and digests come from the artifacts, accuracies from --evaluation, and plots of other
    measurements from --figures. The page names each part that is missing because its input was not given. Evaluations
    of other artifacts are refused, and so are several that measured data of one name in different ways.
    """
    from bakeout.export.report.page import write_report

    write_report(directories, output, evaluations=evaluations, figures=figures)
    if machine:
        emit_json({"report": str(output)})
    else:
        show(f"{output}: {output.stat().st_size:,} bytes. Open it in a browser.")
