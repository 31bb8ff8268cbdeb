"""The options of commands in which a PyTorch model runs: where, in which type, and where what it gives is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from bakeout.export.cli.options import PATH
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


def cache_options(command: _Command) -> _Command:
    """``--cache`` and ``--no-cache``: where what is probed and trained is kept for another fit."""
    directory = click.option(
        "--cache",
        type=PATH,
        help="Directory that keeps what is probed and trained for another fit; by default in BAKEOUT_CACHE, or the "
        "user's cache.",
    )
    none = click.option("--no-cache", is_flag=True, help="Keep nothing that is probed or trained.")
    return directory(none(command))


def kept_in(cache: Path | None, no_cache: bool) -> Path | None:
    """The directory that the options name."""
    from bakeout.models.network.probe_cache import default_directory

    return None if no_cache else cache or default_directory()
