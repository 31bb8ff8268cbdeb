"""Options that several commands have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


directories = click.argument("directories", type=PATH, nargs=-1, required=True, metavar="DIR...")
json_output = click.option("--json", "machine", is_flag=True, help="Print one JSON object.")

_TEMPLATE = (
    click.option("--template", "chat_template", metavar="NAME", help="The chat template, if there are several."),
    click.option(
        "--template-argument",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument of the chat template, as in enable_thinking=false; repeatable.",
    ),
    click.option("--template-date", "date", help="The day that a chat template which reads the clock is told."),
)


def template_options(command: Command) -> Command:
    """The options that ``chosen_template`` takes: `chat_template`, `arguments` and `date`."""
    return reduce(lambda decorated, option: option(decorated), reversed(_TEMPLATE), command)


def chosen_template(name: str | None, arguments: Sequence[str], date: str | None) -> ChatTemplateOptions | None:
    """The chat template that a command line chooses; None where it chooses none. Raises ``BakeoutError``."""
    if name is None and not arguments and date is None:
        return None
    from pydantic import ValidationError

    from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions

    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise BakeoutError(f"{argument!r} is no argument of a chat template.", "Give `arguments` as NAME=VALUE.")
        given[key] = _value(value)
    try:
        return ChatTemplateOptions.model_validate({"name": name, "arguments": given, "date": date})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise BakeoutError(f"`{wrong['loc'][0]}`: {wrong['msg']}.", "Correct it.") from None


def _value(text: str) -> Any:
    """JSON as it is; what is none is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
