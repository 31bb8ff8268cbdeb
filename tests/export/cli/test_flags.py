"""Errors name options; the command line shows them as flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from bakeout.export.cli.flags import with_flags

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Give `base`.", "Give `--base`."),
        ("Bake with `to: onnx`.", "Bake with `--to onnx`."),
        ("Bake with `inline: true`.", "Bake with `--inline`."),
        ("Bake with `canary: false`.", "Bake with `--no-canary`."),
        ("Name another `output`.", "Name another `--output`."),
        ("Set `ratio: 0.1`, or `model`, or base.", "Set `ratio: 0.1`, or `model`, or base."),
    ],
)
def test_options_are_shown_as_flags(text: str, shown: str) -> None:
    @click.command()
    @click.argument("model")
    @click.option("--base")
    @click.option("-o", "--output")
    @click.option("--to")
    @click.option("--inline", is_flag=True)
    @click.option("--canary/--no-canary")
    def command() -> None:
        """Nothing."""

    assert with_flags(text, command.params) == shown


def test_no_error_of_the_library_names_a_flag() -> None:
    sources = [path for floor in ("models", "graph_passes", "export") for path in (ROOT / floor).rglob("*.py")]
    library = [path for path in sources if path.parent != ROOT / "export" / "cli"]
    assert len(library) > 100
    texts = {
        f"{path.relative_to(ROOT)}: {text.value}"
        for path in library
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id.endswith("Error")
        for text in ast.walk(call)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
    }
    assert {text for text in texts if re.search(r"(?<![\w-])(--[a-z]|-o\b)", text.partition(": ")[2])} == set()
