"""The files that tuning writes: the recipe with its choices filled in, figures, and the tables of all trials."""

from __future__ import annotations

import csv
import hashlib
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
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import replace_file, require_new, write_files
from bakeout.models.methods.search_space import Settings

# The SHA-256 of what a search ends with, noted before that is written.
_WRITTEN = "written.json"


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


def require_new_outputs(directory: Path, outputs: Mapping[str, Path]) -> None:
    """``require_new`` for what ``write_outputs`` will write, but for a part that a killed run left.

    Call it before long work begins.
    """
    left = [name for name, path in outputs.items() if os.path.lexists(path)]
    if len(left) < len(outputs):
        recorded = read_json(directory / _WRITTEN)
        left = [name for name in left if outputs[name].is_file() and hash_file(outputs[name]) == recorded.get(name)]
    else:
        left = []
    for name, path in outputs.items():
        if name not in left:
            require_new(path)


def write_outputs(directory: Path, outputs: Mapping[str, Path], contents: Mapping[str, str]) -> None:
    """Write files that belong together, by name: all appear, or none. Where the process is killed between two of them,
    the next run finds in ``directory`` what they were to be, and completes them.
    """
    digests = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in contents.items()}
    replace_file(directory / _WRITTEN, json.dumps(digests, indent=1))
    missing = {
        name: path for name, path in outputs.items() if not (path.is_file() and hash_file(path) == digests[name])
    }
    write_files({path: contents[name] for name, path in missing.items()})


def filled_recipe(content: bytes, source: Path, output: Path, recipe: Recipe, filled: Mapping[int, Settings]) -> str:
    """The recipe, read from ``source``, with its comments and choices, its paths relative to the file ``output``."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 120
    written = yaml.load(content.decode("utf-8"))
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

    if (source / written["model"]).exists():
        written["model"] = moved(written["model"])
    for name, files in written["data"].items():
        # Rows may stand in the recipe itself, and files of single uses beside `columns` and `grade`.
        if isinstance(files, str):
            written["data"][name] = moved(files)
        elif isinstance(files, dict):
            files.update({use: moved(files[use]) for use in recipe.data[name].named() if isinstance(files[use], str)})
    evaluate = written.get("evaluate") or {}
    tasks = evaluate.get("tasks")
    for section, key in ((evaluate, "answers"), (tasks if isinstance(tasks, dict) else {}, "directory")):
        if section.get(key) is not None:
            section[key] = moved(section[key])
    for entry, known in zip(written["interventions"], recipe.interventions, strict=True):
        (options,) = entry.values()
        options.update({key: moved(options[key]) for key in known.options.paths() if key in options})
