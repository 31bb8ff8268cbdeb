"""The content of the files that tuning writes: the recipe with its choices filled in, and the tables of all trials."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from bakeout.export.recipes.recipe import Recipe
from bakeout.export.tuning.trials import Trial
from bakeout.models.files.csv_cells import as_cell
from bakeout.models.files.writing import replace_file
from bakeout.models.methods.search_space import Settings


def write_tables(
    directory: Path, recipe: Recipe, tried: Mapping[int, Sequence[Trial]], filled: Mapping[int, Settings]
) -> None:
    """All trials, as JSON and CSV."""
    content = {
        str(index): {
            "method": recipe.interventions[index].method.name,
            "chosen": dict(filled[index]),
            "trials": [trial.as_json() for trial in trials],
        }
        for index, trials in tried.items()
    }
    replace_file(directory / "trials.json", json.dumps(content, indent=1, ensure_ascii=False))
    for index, trials in tried.items():
        table = StringIO()
        writer = csv.writer(table, lineterminator="\n")
        first = trials[0]
        columns = [*first.settings, *first.measured.forget, *first.measured.retain, "divergence"]
        writer.writerow(map(as_cell, columns))
        for trial in trials:
            measured = trial.measured
            shares = [*measured.forget.values(), *measured.retain.values()]
            writer.writerow([*trial.settings.values(), *shares, measured.divergence])
        replace_file(directory / f"trials-{index}-{recipe.interventions[index].method.name}.csv", table.getvalue())


def filled_recipe(source: Path, output: Path, recipe: Recipe, filled: Mapping[int, Settings]) -> str:
    """The recipe with its comments, with the choices filled in and its paths relative to the file ``output``."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 120
    written = yaml.load(source.read_text(encoding="utf-8"))
    for index, settings in filled.items():
        (options,) = written["interventions"][index].values()
        options.update({key: _as_yaml(value) for key, value in settings.items()})
    if source.resolve().parent != output.resolve().parent:
        _move(written, recipe, source.resolve().parent, output.resolve().parent)
    text = StringIO()
    yaml.dump(written, text)
    return text.getvalue()


def _as_yaml(value: Any) -> Any:
    """Lists on one line."""
    if not isinstance(value, list):
        return value
    written = CommentedSeq(value)
    written.fa.set_flow_style()
    return written


def _move(written: Any, recipe: Recipe, source: Path, destination: Path) -> None:
    """Rewrite the relative paths of a recipe for another directory."""

    def moved(path: str) -> str:
        return path if Path(path).is_absolute() else Path(os.path.relpath(source / path, destination)).as_posix()

    if (source / written["model"]).is_dir():
        written["model"] = moved(written["model"])
    for name, files in written["data"].items():
        # Rows may stand in the recipe itself, and files of single uses beside `columns`.
        if isinstance(files, str):
            written["data"][name] = moved(files)
        elif isinstance(files, dict):
            files.update({use: moved(path) for use, path in files.items() if isinstance(path, str)})
    for entry, known in zip(written["interventions"], recipe.interventions, strict=True):
        (options,) = entry.values()
        options.update({key: moved(options[key]) for key in known.options.paths() if key in options})
