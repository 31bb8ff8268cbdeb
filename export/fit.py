"""From a recipe to a plan: probe the model, fit each intervention with those before it in force, measure a canary."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.export.console import Track, no_track
from bakeout.export.data_files import by_use
from bakeout.export.fit_methods import Fitting, Rows, fit_method
from bakeout.export.recipe import Recipe
from bakeout.models.checkpoint import load_tokenizer, resolve_checkpoint, weights_digest
from bakeout.models.data import file_digest, read_records
from bakeout.models.plan import Intervention, Plan, WeightEdit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGES = ("bakeout", "numpy", "safetensors", "scipy", "torch", "transformers")


def fit(recipe: Recipe, track: Track = no_track) -> Plan:
    """Fit a recipe's interventions, in order, and return the plan that carries them.

    Raises ``BakeoutError`` for whatever is wrong with the checkpoint, the data or the options.
    """
    from bakeout.models.canary import measure_canary
    from bakeout.models.checkpoint import load_model
    from bakeout.models.families import identity
    from bakeout.models.weight_edits import apply_weight_edit

    checkpoint = resolve_checkpoint(recipe.model)
    tokenizer = load_tokenizer(checkpoint)
    with tempfile.TemporaryDirectory(prefix="bakeout-") as scratch:
        rows = read_rows(recipe, tokenizer, Path(scratch))
    model = load_model(checkpoint)
    interventions: list[Intervention] = []
    for entry in recipe.interventions:
        fitting = Fitting(model, tokenizer, recipe.fitted_data(), rows, tuple(interventions), track)
        fitted = fit_method(entry.options, fitting)
        interventions.append(fitted)
        if isinstance(fitted, WeightEdit):
            apply_weight_edit(model, fitted)
    first = next(iter(recipe.interventions[0].options.names(recipe.fitted_data()).values()))
    prompts = [record.prompt_ids + record.response_ids for record in rows[first[0]]["probe"]]
    return Plan(
        model=identity(model, weights_digest(checkpoint)),
        interventions=tuple(interventions),
        canary=measure_canary(model, interventions, prompts),
        provenance={
            "data": {
                name: {use: file_digest(path) for use, path in files.named().items()}
                for name, files in recipe.data.items()
            },
            "versions": {package: version(package) for package in _PACKAGES},
        },
    )


def read_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> Rows:
    """What is fitted on: per data name the records to probe and to calibrate on."""
    return {
        name: {use: read_records(path, tokenizer) for use, path in files.items() if use in ("probe", "calibration")}
        for name, files in by_use(recipe.data, scratch).items()
    }
