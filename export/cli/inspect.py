"""`bakeout inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, show_lines
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("path", type=PATH)
@json_output
def inspect(path: Path, machine: bool) -> None:
    """Show what a plan or an artifact holds."""
    from bakeout.export.artifacts.inspection import inspect, lines

    content = inspect(path)
    if machine:
        emit_json(content.as_json())
    else:
        show_lines(lines(content))
