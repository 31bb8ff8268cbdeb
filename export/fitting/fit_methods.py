"""Each method's way from its section of a recipe to an intervention: which data it probes, and what it is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bakeout.export.recipes.intervention_options import (
    KeySpaceDetectionOptions,
    LearnOptions,
    LunarOptions,
    MethodOptions,
    NeuronAdjustOptions,
    RevealAndReleaseOptions,
    SelectivePruningOptions,
    UnlearnOptions,
)
from bakeout.export.tuning.search_spaces import tuned
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Integers, Intervention
from bakeout.models.progress import Item, Track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bakeout.models.data.tokenization import Tokenizer
    from bakeout.models.methods.unlearn.fit import IdentificationOptions

BATCH = 16

Rows = Mapping[str, Mapping[str, Sequence[Record]]]
# By data name, use and kind of variant.
Variants = Mapping[str, Mapping[str, Mapping[str, Sequence[Record]]]]


@dataclass(frozen=True)
class Fitting:
    """What a method is fitted with.

    ``model`` carries the earlier weight edits already; ``earlier`` are the interventions before this one. ``rows`` are
    the records by name and use (``probe``, ``selection``, ``calibration``), ``data`` all names of the recipe;
    ``variants``, of the names that the method's ``augment`` widens, the same records in other forms.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    data: Sequence[str]
    rows: Rows
    earlier: tuple[Intervention, ...]
    track: Track
    variants: Variants = field(default_factory=dict)

    def probe(self, names: Sequence[str]) -> list[Record]:
        """The probe records of several names, one after the other."""
        return [record for name in names for record in self.rows[name]["probe"]]


def fit_method(options: MethodOptions, fitting: Fitting) -> Intervention:
    """Fit one intervention, with the earlier ones in force. Its report names the data of its roles."""
    from bakeout.models.reference.hooks import Hooks

    names = options.names(fitting.data)
    with Hooks(fitting.model, fitting.earlier):
        fitted = _FITS[type(options)](options, fitting, names)
    return replace(fitted, report={**names, **fitted.report})


def refusal_tokens(refusal: str, tokenizer: Tokenizer) -> Integers:
    """The refusal as int64 token ids, the end-of-text token last.

    Raises ``BakeoutError`` where the tokenizer cannot write the text, or has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise BakeoutError(
            "The tokenizer has no end-of-text token to end the refusal with.", "Set `eos_token` in its configuration."
        )
    tokens = tokenizer.encode(refusal, add_special_tokens=False)
    written = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    if written != refusal.strip():
        raise BakeoutError(
            f"The tokenizer cannot write the refusal {refusal!r}: it would read {written!r}.",
            "Choose a refusal in the model's own script.",
        )
    return np.array([*tokens, tokenizer.eos_token_id], dtype=np.int64)


def _neuron_adjust(options: NeuronAdjustOptions, fitting: Fitting, names: Mapping[str, list[str]]) -> Intervention:
    from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
    from bakeout.models.network.probing import probe_neurons

    forget, retain = (
        probe_neurons(
            fitting.model,
            fitting.probe(names[role]),
            scope=options.tokens,
            batch_size=BATCH,
            track=naming(fitting.track, names[role]),
        )
        for role in ("forget", "retain")
    )
    return fit_neuron_adjust(
        forget, retain, ratio=tuned(options.ratio), selection=options.selection, coin=options.coin, seed=options.seed
    )


def _key_space_detection(
    options: KeySpaceDetectionOptions, fitting: Fitting, names: Mapping[str, list[str]]
) -> Intervention:
    from bakeout.export.fitting.fit_detection import fit_detection

    return fit_detection(options, fitting, names)


def _selective_pruning(
    options: SelectivePruningOptions, fitting: Fitting, names: Mapping[str, list[str]]
) -> Intervention:
    from bakeout.models.methods.selective_pruning.fit import fit_selective_pruning
    from bakeout.models.network.probing import probe_key_magnitudes

    forget, retain = (
        probe_key_magnitudes(
            fitting.model,
            fitting.probe(names[role]),
            scope=options.tokens,
            batch_size=BATCH,
            track=naming(fitting.track, names[role]),
        )
        for role in ("forget", "retain")
    )
    return fit_selective_pruning(forget, retain, ratio=options.ratio)


def _lunar(options: LunarOptions, fitting: Fitting, names: Mapping[str, list[str]]) -> Intervention:
    from bakeout.models.methods.lunar.fit import fit_lunar

    return fit_lunar(
        fitting.model,
        fitting.probe(names["forget"]),
        fitting.probe(names["reference"]),
        fitting.probe(names["retain"]),
        redirected=fitting.probe(names.get("redirected", [])),
        layers=options.layers,
        solver=options.solver,
        aim=options.aim,
        coefficient=tuned(options.coefficient),
        ridge=options.ridge,
        batch_size=BATCH,
        seed=options.seed,
        track=fitting.track,
    )


def _unlearn(options: UnlearnOptions, fitting: Fitting, names: Mapping[str, list[str]]) -> Intervention:
    from bakeout.models.methods.unlearn.fit import fit_unlearn

    return fit_unlearn(
        fitting.model,
        {name: fitting.probe([name]) for name in names["forget"]},
        {name: fitting.probe([name]) for name in names.get("similar", [])},
        energy=options.energy,
        scale=tuned(options.scale),
        options=_identification(options),
        seed=options.seed,
        track=fitting.track,
    )


def _learn(options: LearnOptions, fitting: Fitting, names: Mapping[str, list[str]]) -> Intervention:
    from bakeout.models.methods.unlearn.fit import fit_learn

    return fit_learn(
        fitting.model,
        {name: fitting.probe([name]) for name in names["learn"]},
        {name: fitting.probe([name]) for name in names.get("similar", [])},
        energy=options.energy,
        scale=options.scale,
        options=_identification(options),
        seed=options.seed,
        track=fitting.track,
    )


def _identification(options: UnlearnOptions | LearnOptions) -> IdentificationOptions:
    from bakeout.models.methods.unlearn.fit import IdentificationOptions

    return IdentificationOptions(rank=options.rank, steps=options.steps, learning_rate=options.learning_rate)


def _reveal_and_release(
    options: RevealAndReleaseOptions, fitting: Fitting, names: Mapping[str, list[str]]
) -> Intervention:
    from bakeout.models.methods.reveal_and_release.fit import fit_reveal_and_release

    return fit_reveal_and_release(
        fitting.model,
        fitting.tokenizer,
        options.instructions,
        {name: fitting.rows[name]["probe"] for name in names["retain"]},
        directory=options.directory,
        scorer=options.patterns or "novelty",
        rounds=options.rounds,
        target=options.target,
        utility=options.utility,
        seed=options.seed,
        track=fitting.track,
    )


def naming(track: Track, names: Sequence[str]) -> Track:
    """Progress whose descriptions end with what data is worked on."""

    def named(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        return track(iterable, f"{description}: {', '.join(names)}", total)

    return named


_FITS: Mapping[type[MethodOptions], Callable[[Any, Fitting, Mapping[str, list[str]]], Intervention]] = {
    NeuronAdjustOptions: _neuron_adjust,
    KeySpaceDetectionOptions: _key_space_detection,
    SelectivePruningOptions: _selective_pruning,
    LunarOptions: _lunar,
    UnlearnOptions: _unlearn,
    LearnOptions: _learn,
    RevealAndReleaseOptions: _reveal_and_release,
}
