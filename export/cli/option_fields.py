"""Flags that come from the fields of an options type: names, types, defaults and descriptions are written there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class FieldsCommand(click.Command):
    """A command that has a flag for every field of ``fields()``, besides its own.

    The type is loaded when the flags are needed, so that `bakeout --help` does without.
    """

    def __init__(self, *arguments: Any, fields: Callable[[], type[BaseModel]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._fields: Callable[[], type[BaseModel]] | None = fields

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then those of the fields and ``--help``."""
        if self._fields is not None:
            self.params += [_flag(name, field) for name, field in self._fields().model_fields.items()]
            self._fields = None
        return super().get_params(ctx)


def _flag(name: str, field: FieldInfo) -> click.Option:
    """``--early-exit/--no-early-exit``, ``--dtype [fp32|fp16]``, or the repeatable ``--runtime`` of ``runtimes``."""
    flag, default, text = f"--{name.replace('_', '-')}", field.default, field.description
    if field.annotation in (bool, bool | None):
        declaration = flag if default is False else f"{flag}/--no-{flag[2:]}"
        return click.Option([declaration], is_flag=True, default=default, help=text)
    names = list(_choices(field.annotation))
    choices = click.Choice(names) if names else click.STRING
    if get_origin(field.annotation) is tuple:
        return click.Option([flag.removesuffix("s"), name], type=choices, multiple=True, help=f"{text} Repeatable.")
    return click.Option([flag], type=choices, default=default, show_default=default is not None, help=text)


def _choices(annotation: Any) -> Iterator[str]:
    """The strings of a literal type, of an optional one, or of a tuple of them."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, UnionType, tuple):
        for part in get_args(annotation):
            yield from _choices(part)
