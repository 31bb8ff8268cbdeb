"""`bakeout recipe`."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bakeout.export.recipes.reference import Explanation, Option

_WIDEST = 100
# What `--explain` without a method stands for.
_WHOLE = ""


# \b keeps the lines below it as they are.
_EXAMPLES = """\b
bakeout recipe --explain          the sections of a recipe, and all methods
bakeout recipe --explain lunar    the options of one method
bakeout recipe --schema           for an editor that completes and checks YAML
"""


@click.command(epilog=_EXAMPLES)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for editors.")
@click.option(
    "--explain",
    "method",
    is_flag=False,
    flag_value=_WHOLE,
    metavar="[METHOD]",
    help="Print what a recipe, or a method's section of it, may hold: options, values, defaults, meanings, sources.",
)
def recipe(schema: bool, method: str | None) -> None:
    """Show what a recipe may hold."""
    if schema == (method is not None):
        raise click.UsageError("Choose '--schema' or '--explain'.")
    if schema:
        from bakeout.export.recipes.schema import recipe_schema

        click.echo(json.dumps(recipe_schema(), ensure_ascii=False, indent=2))
        return
    from bakeout.export.recipes.reference import explain_method, explain_recipe
    from bakeout.models.methods.registry import method as find_method

    explanations = explain_method(find_method(method)) if method else explain_recipe()
    click.echo("\n".join(line for explanation in explanations for line in _lines(explanation)))
    if not method:
        click.echo("\n".join(_method_lines()))


def _lines(explanation: Explanation) -> Iterator[str]:
    yield click.style(explanation.title, bold=True) + (f"   {explanation.key}" if explanation.key else "")
    yield from _wrapped(explanation.about)
    for note in explanation.notes:
        yield from _wrapped(note)
    yield ""
    for option in explanation.options:
        yield f"  {click.style(option.name, bold=True)}: {_values(option)}"
        yield from _wrapped(option.meaning, indent=6)
    yield ""


def _values(option: Option) -> str:
    if option.default is None:
        return f"{option.values}; required"
    return f"{option.values}; default {option.default}" if option.default else option.values


def _method_lines() -> Iterator[str]:
    from bakeout.export.recipes.reference import method_lines

    yield click.style("Methods", bold=True) + "   interventions: - METHOD:"
    yield from _wrapped("What `interventions` may be. `bakeout recipe --explain METHOD` prints the options of one.")
    yield ""
    for name, about in method_lines().items():
        yield f"  {click.style(name, bold=True)}"
        yield from _wrapped(about, indent=6)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    space = " " * indent
    return textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
