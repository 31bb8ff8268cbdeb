"""The options `--grade` and `--columns`: what is written for single data, by their names, or for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bakeout.export.evaluation.graders.grader import Grader
    from bakeout.export.recipes.data_files import Columns

columns_option = click.option(
    "--columns",
    multiple=True,
    metavar="[NAME=]COLUMNS",
    help="The keys of a file's rows, or of all, as in '{prompt: question, response: answer}'; repeatable.",
)


def graders(grades: Sequence[str], names: Sequence[str]) -> dict[str, Grader]:
    """The graders by the name of the data: of `NAME=GRADER`, or of `GRADER`, which is for all others."""
    from bakeout.export.evaluation.graders.registry import grader_of

    return {name: grader_of(grader, name) for name, grader in _by_name("--grade", grades, names).items()}


def named_columns(columns: Sequence[str], names: Sequence[str]) -> dict[str, Columns]:
    """The columns by the name of the data: of `NAME=COLUMNS`, or of `COLUMNS`, which are for all others."""
    from bakeout.export.recipes.data_files import columns_of

    written = _by_name("--columns", columns, names)
    for name, keys in written.items():
        if not isinstance(keys, Mapping):
            raise click.UsageError(f"--columns of {name} are not written as in '{{prompt: question}}'.")
    return columns_of(written, names)


def _by_name(option: str, values: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The values by the name of the data, read as YAML: of `NAME=VALUE`, or of `VALUE`, which is for all others."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    written: dict[str, str] = {}
    for value in values:
        name, named, own = value.partition("=")
        if named and name in names:
            written[name] = own
        elif named and "{" not in name:
            raise click.UsageError(f"{option} names {name}, and the data are {', '.join(names) or 'none'}.")
        else:
            written = {**dict.fromkeys(names, value), **written}
    read = {}
    for name, text in written.items():
        try:
            read[name] = YAML(typ="safe").load(text)
        except YAMLError:
            raise click.UsageError(f"{option} {text} is not YAML.") from None
    return read
