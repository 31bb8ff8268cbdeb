"""`bakeout report`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.console import emit_json

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("directories", type=_PATH, nargs=-1, required=True, metavar="DIR...")
@click.option("-o", "--output", type=_PATH, required=True, help="The page's file; it must not exist.")
@click.option(
    "--evaluation", "evaluations", type=_PATH, multiple=True, help="What `evaluate --json` printed; repeatable."
)
@click.option("--figures", type=_PATH, multiple=True, help="Figures of `tune`, `attack` or a benchmark; repeatable.")
@click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
def report(
    directories: tuple[Path, ...],
    output: Path,
    evaluations: tuple[Path, ...],
    figures: tuple[Path, ...],
    machine: bool,
) -> None:
    """Write one self-contained page about artifacts, for people.

    What was edited, with receipts and digests, is read from the artifacts; accuracies come with --evaluation, and
    plots of what was measured elsewhere with --figures. What is not given is left out, and the page says so.
    """
    from bakeout.export.report.page import write_report

    write_report(directories, output, evaluations=evaluations, figures=figures)
    if machine:
        emit_json({"report": str(output)})
    else:
        click.echo(f"{output}: {output.stat().st_size:,} bytes. Open it in a browser.")
