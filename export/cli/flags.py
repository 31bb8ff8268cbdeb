"""Errors name options as Python and recipes do; the command line shows them as the flags of the running command."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

# `name` or `name: value`, in backticks.
_OPTION = re.compile(r"`(\w+)(?:: (\w+))?`")


def with_flags(text: str, parameters: Sequence[click.Parameter]) -> str:
    """``text`` with every option in backticks that is one of ``parameters`` written as its flag.

    >>> with_flags("Give `base`, or bake with `to: onnx`.", bake.params)   # doctest: +SKIP
    'Give `--base`, or bake with `--to onnx`.'

    For a pair such as ``--canary/--no-canary``, `canary: false` is the second flag. An option that the command lacks
    stays as it is.
    """
    options = {parameter.name: parameter for parameter in parameters if isinstance(parameter, click.Option)}

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        option = options.get(name)
        if option is None:
            return match[0]
        if option.is_flag:
            opposite = option.secondary_opts[0] if option.secondary_opts else None
            shown = opposite if value == "false" else _longest(option)
            return f"`{shown}`" if shown else match[0]
        return f"`{_longest(option)} {value}`" if value else f"`{_longest(option)}`"

    return _OPTION.sub(flag, text)


def _longest(option: click.Option) -> str:
    """``--output`` of ``-o`` and ``--output``."""
    return max(option.opts, key=len)
