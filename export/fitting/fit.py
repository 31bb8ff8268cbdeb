"""From a recipe to a plan: probe the model, fit each intervention with those before it in force, make a canary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.export.fitting.recipe_rows import read_recipe_rows
from bakeout.export.recipes.interventions import require_tuned
from bakeout.export.recipes.recipe import Recipe
from bakeout.export.recipes.recipe_inputs import RecipeInputs, open_inputs, open_rows, without_tests
from bakeout.models.data.rows import Record
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.data.uses import Use
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting, fit_method
from bakeout.models.plan import Intervention, Plan
from bakeout.models.plan.routing_stability import ROUTING
from bakeout.models.progress import Track, untracked

if TYPE_CHECKING:
    from bakeout.models.checkpoint.loaded_model import LoadedModel

# Texts of each retained name whose routing is compared.
_ROUTED = 64
_PACKAGES = ("bakeout", "numpy", "safetensors", "scipy", "torch", "transformers")


def fit(
    recipe: Recipe,
    track: Track = untracked,
    *,
    inputs: RecipeInputs | None = None,
    loaded: LoadedModel | None = None,
    cache: Path | None = None,
) -> Plan:
    """Fit a recipe's interventions, in order, and return the plan that carries them.

    ``inputs``: what ``recipe`` names, where it has been opened already; ``loaded``: its model, where it is in memory
    already; in the end its weights are what they were. ``cache``: the directory that keeps what is probed. Raises
    ``BakeoutError`` for whatever is wrong with the checkpoint, the data or the options.
    """
    from bakeout.models.checkpoint.checkpoint_files import load_model, read_config
    from bakeout.models.checkpoint.this_machine import computed_in, require_weights_in_memory
    from bakeout.models.network.families import identity, model_limits, text_config
    from bakeout.models.network.mixtures.routers import routers
    from bakeout.models.network.probe_cache import ProbeCache
    from bakeout.models.network.processes import are_several, require_alike
    from bakeout.models.reference.canary import synthesise_canary
    from bakeout.models.reference.routing import chosen_experts, compare_routing
    from bakeout.models.reference.search_vocabulary import Vocabulary
    from bakeout.models.reference.weight_edits import apply_weight_edit, edited_weights

    require_tuned(recipe.interventions)
    if loaded is None:
        inputs = inputs or open_inputs(recipe)
        directory = inputs.checkpoint.directory
        data = read_recipe_rows(recipe, inputs.fitted, load_tokenizer(directory), read_config(directory))
        model = load_model(directory, recipe.placement)
        digest, source, data_digests = inputs.checkpoint.digest, inputs.checkpoint.source, inputs.digests
    else:
        sources, data_digests = open_rows(recipe)[:2] if inputs is None else (inputs.sources, inputs.digests)
        data = read_recipe_rows(recipe, without_tests(sources), loaded.tokenizer, loaded.model.config.to_dict())
        model, digest, source = loaded.model, loaded.digest, {}
    options = [(entry.method.title, entry.options.model_dump(mode="json")) for entry in recipe.interventions]
    require_alike((digest, data_digests, options))
    data.require_readable(model_limits(model))
    interventions: list[Intervention] = []
    kept = _kept_texts(recipe, data.rows) if routers(model) else []
    routed = chosen_experts(model, kept) if kept else []
    with ExitStack() as until_the_end:
        for entry in recipe.interventions:
            fitting = Fitting(
                model,
                data.tokenizer,
                data=recipe.fitted_data(),
                rows=data.rows,
                sources=data.sources,
                earlier=tuple(interventions),
                track=track,
                cache=ProbeCache.of(cache, model, digest, interventions),
            )
            if entry.method.kind.edits_weights:
                require_weights_in_memory(model, entry.method.title)
            if are_several() and entry.options.paths():
                raise BakeoutError(
                    f"{entry.method.title} keeps files that several processes would write at once.",
                    "Fit in one process.",
                )
            fitted = fit_method(entry.method, entry.options, fitting)
            interventions.append(fitted)
            if loaded is None:
                apply_weight_edit(model, fitted)
            else:
                until_the_end.enter_context(edited_weights(model, [fitted]))
        vocabulary = Vocabulary.of_data(data.tokenizer, text_config(model).vocab_size, data.rows)
        canary = synthesise_canary(model, interventions, vocabulary, track=track)
        stability = compare_routing(routed, chosen_experts(model, kept, interventions)) if kept else None
    return Plan(
        model=identity(model, digest),
        interventions=tuple(interventions),
        canary=canary,
        provenance={
            "data": data_digests,
            "versions": {package: version(package) for package in _PACKAGES},
            **({"source": source} if source else {}),
            # Nothing where it was float32 on the CPU.
            **({"computed_in": computed} if (computed := computed_in(model)) else {}),
            **({CHAT_TEMPLATE: data.chat_template} if data.chat_template else {}),
            **({ROUTING: stability.as_json()} if stability else {}),
        },
    )


def _kept_texts(recipe: Recipe, rows: Mapping[str, Mapping[Use, Sequence[Record]]]) -> list[list[int]]:
    """Texts of the data that no intervention forgets, on which a mixture's routing is to stay as it is."""
    forgotten = {name for entry in recipe.interventions for name in entry.options.names(list(rows)).get("forget", ())}
    texts = []
    for name, uses in rows.items():
        if name not in forgotten and uses:
            records = uses.get("calibration") or uses.get("selection") or next(iter(uses.values()))
            texts += [record.prompt_ids + record.response_ids for record in records[:_ROUTED]]
    return [text for text in texts if text]
