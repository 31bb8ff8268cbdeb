"""The option `--grade`: graders by the names of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bakeout.export.evaluation.graders.grader import Grader


def graders(grades: Sequence[str], names: Sequence[str]) -> dict[str, Grader]:
    """The graders by the name of the data: of `NAME=GRADER`, or of `GRADER`, which is for all others."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from bakeout.export.evaluation.graders.registry import grader_of

    written: dict[str, str] = {}
    for grade in grades:
        name, named, grader = grade.partition("=")
        if named and name in names:
            written[name] = grader
        elif named and "{" not in name:
            raise click.UsageError(f"--grade names {name}, and the data are {', '.join(names) or 'none'}.")
        else:
            written = {**dict.fromkeys(names, grade), **written}
    made = {}
    for name, grader in written.items():
        try:
            made[name] = grader_of(YAML(typ="safe").load(grader), name)
        except YAMLError:
            raise click.UsageError(f"--grade {grader} is not YAML.") from None
    return made
