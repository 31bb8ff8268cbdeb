"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)

directories = click.argument("directories", type=PATH, nargs=-1, required=True, metavar="DIR...")
json_output = click.option("--json", "machine", is_flag=True, help="Print one JSON object.")
