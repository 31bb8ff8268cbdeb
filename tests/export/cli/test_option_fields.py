"""A command's flags are the fields of its options type."""

from __future__ import annotations

from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from bakeout.export.cli.option_fields import FieldsCommand


class Options(BaseModel):
    size: Literal["small", "large"] = Field("small", description="How large.")
    colour: Literal["red"] | None = Field(None, description="Which colour.")
    round_corners: bool = Field(True, description="Round.")
    loud: bool = Field(False, description="Loud.")
    names: tuple[Literal["a", "b"], ...] = Field((), description="The names.")


@click.command(cls=FieldsCommand, fields=lambda: Options)
@click.argument("path")
def command(path: str, **chosen: Any) -> None:
    click.echo(repr(Options(**chosen)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Options()),
        (["--size", "large", "--colour", "red"], Options(size="large", colour="red")),
        (["--no-round-corners", "--loud"], Options(round_corners=False, loud=True)),
        (["--name", "a", "--name", "b"], Options(names=("a", "b"))),
    ],
)
def test_flags_become_fields(arguments: list[str], expected: Options) -> None:
    assert CliRunner().invoke(command, ["path", *arguments]).output == f"{expected!r}\n"


def test_help_and_errors_name_the_choices() -> None:
    helped = CliRunner().invoke(command, ["--help"]).output
    assert "--round-corners / --no-round-corners" in helped
    assert "How large.  [default: small]" in helped
    assert "'large'" in CliRunner().invoke(command, ["path", "--size", "huge"]).output
