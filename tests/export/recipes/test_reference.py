"""What a recipe may hold, for editors and for people: all of it comes from the options' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from bakeout.export.cli.main import main
from bakeout.export.recipes.reference import explain_method
from bakeout.models.methods.registry import methods

EXAMPLES = Path(__file__).parents[3] / "examples"
RECIPES = sorted(EXAMPLES.glob("recipes/*.yaml"))


def _printed(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["recipe", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def _accepts(form: dict[str, Any], value: Any, definitions: dict[str, Any]) -> bool:
    """As much of JSON Schema as recipes use."""
    if "anyOf" in form:
        return any(_accepts(part, value, definitions) for part in form["anyOf"])
    if "$ref" in form:
        return _accepts(definitions[form["$ref"].rpartition("/")[2]], value, definitions)
    if "enum" in form or "const" in form:
        return value in form.get("enum", [form.get("const")])
    if form["type"] == "object":
        fields, others = form.get("properties", {}), form.get("additionalProperties", True)
        return isinstance(value, dict) and all(
            _accepts(fields[key], entry, definitions)
            if key in fields
            else others is True or (others is not False and _accepts(others, entry, definitions))
            for key, entry in value.items()
        )
    if form["type"] == "array":
        return isinstance(value, list) and all(_accepts(form["items"], entry, definitions) for entry in value)
    kinds: dict[str, Any] = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)}
    return isinstance(value, kinds[form["type"]])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_accepts_our_recipes(path: Path) -> None:
    schema = json.loads(_printed("--schema"))
    written = YAML(typ="safe").load(path)
    assert _accepts(schema, written, schema["$defs"])
    ((_, options),) = written["interventions"][0].items()
    options["no such option"] = 1
    assert not _accepts(schema, written, schema["$defs"])


@pytest.mark.parametrize("name", methods())
def test_every_option_is_explained(name: str) -> None:
    method = methods()[name]
    text = _printed("--explain", name)
    assert method.title in text
    assert method.paper in text
    explained = {option.name: option for section in explain_method(method) for option in section.options}
    for option, field in method.options.model_fields.items():
        assert f"\n  {option}: " in text
        assert (explained[option].default is None) == field.is_required()
        assert explained[option].meaning


def test_values_and_defaults_are_told() -> None:
    text = _printed("--explain", "key_space_detection")
    assert "  layers: `auto` or `last` or list of integers ≥ 0; default auto\n" in text
    assert "  forget: name or list of names; required\n" in text
    assert "  times_largest: number > 0; required\n" in text
    assert "`bakeout tune` searches, where `ratio: auto`: ratio (0.003 to 0.6)" in _printed(
        "--explain", "neuron_adjust"
    )


def test_the_whole_recipe_is_explained_with_every_method() -> None:
    text = _printed("--explain")
    assert all(f"\n  {name}\n" in text for name in methods())
    assert all(f"\n  {key}: " in text for key in ("model", "probe", "early_exit"))


def test_one_of_both_is_asked_for() -> None:
    for arguments in ([], ["--schema", "--explain"]):
        result = CliRunner().invoke(main, ["recipe", *arguments])
        assert result.exit_code == 2
        assert "'--schema' or '--explain'" in result.stderr
    unknown = CliRunner().invoke(main, ["recipe", "--explain", "lunr"])
    assert (unknown.exit_code, "Did you mean 'lunar'?" in unknown.stderr) == (1, True)


def test_help_of_tune_names_what_each_method_leaves_to_it() -> None:
    text = CliRunner().invoke(main, ["tune", "--help"]).output
    assert "ratio: auto" in text
    assert "region, layers, keys, cubes, floor, epsilon" in text


def test_the_help_shows_each_example_on_a_line_of_its_own() -> None:
    text = CliRunner().invoke(main, ["recipe", "--help"]).output
    assert "\\b" not in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("  bakeout recipe")] == [
        *("--explain", "--explain", "--schema")
    ]
