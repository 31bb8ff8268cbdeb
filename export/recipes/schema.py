"""The recipe's JSON Schema, from which editors complete and check what is written."""

from __future__ import annotations

from typing import Any

from bakeout.export.recipes.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe, with the options of every method that is installed."""
    schema = Recipe.model_json_schema()
    for section in (schema, *(part for part in schema["$defs"].values() if "description" in part)):
        # What follows the first paragraph is for Python.
        section["description"] = " ".join(section["description"].split("\n\n")[0].split()).replace("``", "`")
    # Rows for everything may stand alone for the files of a name.
    files = schema["properties"]["data"]["additionalProperties"]
    everything = schema["$defs"]["DataFiles"]["properties"]["file"]["anyOf"]
    schema["properties"]["data"]["additionalProperties"] = {
        "anyOf": [files, *(form for form in everything if form != {"type": "null"})]
    }
    template = schema["properties"]["chat_template"]
    schema["properties"]["chat_template"] = {"anyOf": [template, {"type": "string", "format": "name"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Bakeout recipe"}
