"""The options of commands in which a PyTorch model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from bakeout.models.checkpoint.placement import Dtype

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--device", help="Where the model runs: auto, cpu, cuda, cuda:N or mps."),
    click.option("--dtype", type=click.Choice(get_args(Dtype)), help="The type that the model runs in."),
    click.option(
        "--device-map", help="For a model larger than one device: auto, balanced, balanced_low_0 or sequential."
    ),
)


def placement_options(command: _Command) -> _Command:
    """``--device``, ``--dtype`` and ``--device-map``, each None where it is not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
