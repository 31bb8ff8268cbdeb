"""From a recipe to a plan: probe the model, fit each intervention with those before it in force, measure a canary."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bakeout.export.console import Track, no_track
from bakeout.export.data_files import by_use
from bakeout.export.intervention_options import KeySpaceDetectionOptions, NeuronAdjustOptions
from bakeout.export.recipe import Recipe
from bakeout.models.checkpoint import load_tokenizer, resolve_checkpoint, weights_digest
from bakeout.models.data import Record, file_digest, read_records
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Integers, Intervention, KeySpaceDetection, NeuronAdjust, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 16
_PACKAGES = ("bakeout", "numpy", "safetensors", "scipy", "torch", "transformers")


def fit(recipe: Recipe, track: Track = no_track) -> Plan:
    """Fit a recipe's interventions, in order, and return the plan that carries them.

    Raises ``BakeoutError`` for whatever is wrong with the checkpoint, the data or the options.
    """
    from bakeout.models.canary import measure_canary
    from bakeout.models.checkpoint import load_model
    from bakeout.models.families import identity

    checkpoint = resolve_checkpoint(recipe.model)
    tokenizer = load_tokenizer(checkpoint)
    with tempfile.TemporaryDirectory(prefix="bakeout-") as scratch:
        rows = _rows(recipe, tokenizer, Path(scratch))
    model = load_model(checkpoint)
    interventions: list[Intervention] = []
    for entry in recipe.interventions:
        options = entry.options
        if isinstance(options, NeuronAdjustOptions):
            interventions.append(_neuron_adjust(recipe, options, model, rows, interventions, track))
        else:
            refusal = refusal_tokens(options.refusal, tokenizer)
            interventions.append(_key_space_detection(recipe, options, model, rows, refusal, interventions, track))
    prompts = [
        record.prompt_ids + record.response_ids for record in rows[recipe.interventions[0].options.forget[0]]["probe"]
    ]
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


def refusal_tokens(refusal: str, tokenizer: PreTrainedTokenizerBase) -> Integers:
    """The refusal as int64 token ids, the end-of-text token last.

    Raises ``BakeoutError`` where the tokenizer cannot write the text, or has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise BakeoutError(
            "The tokenizer has no end-of-text token to end the refusal with.", "Set `eos_token` in its configuration."
        )
    tokens = tokenizer(refusal, add_special_tokens=False).input_ids
    written = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    if written != refusal.strip():
        raise BakeoutError(
            f"The tokenizer cannot write the refusal {refusal!r}: it would read {written!r}.",
            "Choose a refusal in the model's own script.",
        )
    return np.array([*tokens, tokenizer.eos_token_id], dtype=np.int64)


Rows = Mapping[str, Mapping[str, Sequence[Record]]]


def _rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> Rows:
    """What is fitted on: per data name the records to probe and to calibrate on."""
    return {
        name: {use: read_records(path, tokenizer) for use, path in files.items() if use in ("probe", "calibration")}
        for name, files in by_use(recipe.data, scratch).items()
    }


def _neuron_adjust(
    recipe: Recipe,
    options: NeuronAdjustOptions,
    model: PreTrainedModel,
    rows: Rows,
    earlier: Sequence[Intervention],
    track: Track,
) -> NeuronAdjust:
    from bakeout.models.hooks import Hooks
    from bakeout.models.methods.neuron_adjust import fit_neuron_adjust
    from bakeout.models.probing import probe_neurons

    retain = recipe.others(options.forget) if options.retain is None else options.retain
    statistics = []
    with Hooks(model, earlier):
        for names in (options.forget, retain):
            records = [record for name in names for record in rows[name]["probe"]]
            statistics.append(probe_neurons(model, records, scope=options.tokens, batch_size=_BATCH, track=track))
    adjusted = fit_neuron_adjust(
        *statistics, ratio=options.ratio, selection=options.selection, coin=options.coin, seed=options.seed
    )
    return replace(adjusted, report={**adjusted.report, "forget": options.forget, "retain": retain})


def _key_space_detection(
    recipe: Recipe,
    options: KeySpaceDetectionOptions,
    model: PreTrainedModel,
    rows: Rows,
    refusal: Integers,
    earlier: Sequence[Intervention],
    track: Track,
) -> KeySpaceDetection:
    from bakeout.models.families import feed_forward_layers
    from bakeout.models.hooks import Hooks
    from bakeout.models.methods.key_space_detection import fit_key_space_detection
    from bakeout.models.probing import probe_keys

    last = len(feed_forward_layers(model)) - 1
    layers = [last] if options.layers == "last" else sorted(set(options.layers))
    others = recipe.others(options.forget) if options.retain is None else options.retain
    if options.alpha == "auto":
        for name in options.forget:
            if "calibration" not in rows[name]:
                raise BakeoutError(
                    f"`alpha: auto` needs fresh queries of {name}.",
                    f"Give {name} a `calibration:` file, or one file for everything, or a number for alpha.",
                )

    def keys(records: Sequence[Record]) -> dict[int, Any]:
        prompts = [record.prompt_ids for record in records]
        return dict(probe_keys(model, prompts, layers=layers, batch_size=_BATCH, track=track))

    with Hooks(model, earlier):
        probe = {name: keys(rows[name]["probe"]) for name in options.forget}
        calibration = {name: keys(rows[name]["calibration"]) for name in options.forget if "calibration" in rows[name]}
        # False refusals are best counted on queries that no other choice was made on.
        retain = {name: keys(rows[name].get("calibration") or rows[name]["probe"]) for name in others if rows[name]}
    return fit_key_space_detection(
        probe,
        calibration,
        retain,
        layers=layers,
        cubes=options.cubes,
        alpha=options.alpha,
        epsilon=options.epsilon,
        refusal=refusal,
        positions=options.positions,
        floor=options.floor,
        seed=options.seed,
    )
