"""From a recipe to a plan: probe the model, fit each intervention with those before it in force, measure a canary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from bakeout.export.fitting.fit_methods import Fitting, Rows, Variants, fit_method
from bakeout.export.recipes.data_files import by_use
from bakeout.export.recipes.intervention_options import KeySpaceDetectionOptions, MethodOptions
from bakeout.export.recipes.recipe import Recipe
from bakeout.export.tuning.search_spaces import require_tuned
from bakeout.models.checkpoint.checkpoint_files import resolve_checkpoint, weights_digest
from bakeout.models.data.prompt_rows import read_prompt_rows, varied_records
from bakeout.models.data.row_source import Source, source_digest
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenization import load_tokenizer
from bakeout.models.plan import Intervention, Plan, WeightEdit
from bakeout.models.progress import Track, untracked

if TYPE_CHECKING:
    from bakeout.models.data.tokenization import Tokenizer

_PACKAGES = ("bakeout", "numpy", "safetensors", "scipy", "torch", "transformers")


def fit(recipe: Recipe, track: Track = untracked) -> Plan:
    """Fit a recipe's interventions, in order, and return the plan that carries them.

    Raises ``BakeoutError`` for whatever is wrong with the checkpoint, the data or the options.
    """
    from bakeout.models.checkpoint.checkpoint_files import load_model
    from bakeout.models.network.families import identity
    from bakeout.models.reference.canary import measure_canary
    from bakeout.models.reference.weight_edits import apply_weight_edit

    require_tuned(recipe.interventions)
    checkpoint = resolve_checkpoint(recipe.model)
    tokenizer = load_tokenizer(checkpoint)
    rows, variants = read_rows(recipe, tokenizer)
    model = load_model(checkpoint)
    interventions: list[Intervention] = []
    for entry, widening in zip(recipe.interventions, variants, strict=True):
        fitting = Fitting(model, tokenizer, recipe.fitted_data(), rows, tuple(interventions), track, widening)
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
                name: {use: source_digest(path) for use, path in files.named().items()}
                for name, files in recipe.data.items()
            },
            "versions": {package: version(package) for package in _PACKAGES},
        },
    )


def read_rows(recipe: Recipe, tokenizer: Tokenizer) -> tuple[Rows, list[Variants]]:
    """What is fitted on: the records by data name and use, and for each intervention the variants it asks for."""
    files = {
        name: {use: path for use, path in uses.items() if use != "test"} for name, uses in by_use(recipe.data).items()
    }
    rows = {name: {use: read_records(path, tokenizer) for use, path in uses.items()} for name, uses in files.items()}
    return rows, [_variants(entry.options, files, tokenizer) for entry in recipe.interventions]


def _variants(options: MethodOptions, files: Mapping[str, Mapping[str, Source]], tokenizer: Tokenizer) -> Variants:
    if not isinstance(options, KeySpaceDetectionOptions) or not options.augment:
        return {}
    return {
        name: {use: _widening(source, options, tokenizer) for use, source in files[name].items()}
        for name in options.forget
    }


def _widening(
    source: Source, options: KeySpaceDetectionOptions, tokenizer: Tokenizer
) -> Mapping[str, Sequence[Record]]:
    rows = read_prompt_rows(source, tokenizer)
    made = varied_records(rows, options.augment, tokenizer, seed=options.seed, use="widening")
    return {kind: [record for _, record in records] for kind, records in made.items()}
