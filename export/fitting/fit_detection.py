"""Key Space Detection's way from its section of a recipe to cubes: what it probes, chooses by and calibrates on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bakeout.export.fitting.fit_methods import BATCH, Fitting, naming, refusal_tokens
from bakeout.export.recipes.intervention_options import KeySpaceDetectionOptions, TimesLargestOption
from bakeout.models.data.rows import Record
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.cubes import LayerKeys
from bakeout.models.methods.key_space_detection.fit import TimesLargest, fit_key_space_detection, require_calibration
from bakeout.models.methods.key_space_detection.structure import Choice, Structure, choose_structure, layer_sets
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.network.generation import end_tokens
from bakeout.models.network.probing import probe_keys
from bakeout.models.network.teacher_forcing import answers
from bakeout.models.plan import KeySpaceDetection
from bakeout.models.reference.hooks import Hooks


def fit_detection(
    options: KeySpaceDetectionOptions, fitting: Fitting, names: Mapping[str, list[str]]
) -> KeySpaceDetection:
    """Cubes on the probe queries, their structure chosen on the selection queries, alpha on the calibration queries.

    Where `augment` names variants, those of the probe queries are probed too, those of the selection queries are to be
    refused like these, and alpha holds the calibration queries' own and each kind of variant alike.

    Raises ``BakeoutError``, before anything is probed, where queries are lacking or are too few for the guarantee.
    """
    forget, retain = names["forget"], [name for name in names.get("retain", []) if fitting.rows[name]]
    _require_queries(options, fitting, forget)
    count = len(feed_forward_layers(fitting.model))
    if options.layers == "auto":
        layers = sorted({layer for one in layer_sets(count) for layer in one})
    else:
        layers = [count - 1] if options.layers == "last" else sorted(set(options.layers))
    probe = {name: _keys(fitting, name, _widened(fitting, name, "probe"), layers) for name in forget}
    choice = _choice(options, fitting, probe, retain, layers) if options.is_chosen else None
    structure = _given(options, layers) if choice is None else choice.chosen.structure
    layers = list(structure.layers)
    calibrated = [name for name in forget if "calibration" in fitting.rows[name]]
    fitted = fit_key_space_detection(
        probe,
        {name: _keys(fitting, name, fitting.rows[name]["calibration"], layers) for name in calibrated},
        # False refusals are best counted on queries that no other choice was made on.
        {
            name: _keys(fitting, name, fitting.rows[name].get("calibration") or _fresh(fitting, name), layers)
            for name in retain
        },
        layers=layers,
        cubes=structure.cubes,
        alpha=_alpha(options.alpha),
        epsilon=structure.epsilon,
        refusal=refusal_tokens(options.refusal, fitting.tokenizer),
        positions=options.positions,
        floor=structure.floor,
        seed=options.seed,
        variants={
            name: {
                kind: _keys(fitting, f"{name}, {kind}", records, layers)
                for kind, records in fitting.variants.get(name, {}).get("calibration", {}).items()
                if records
            }
            for name in calibrated
        },
    )
    report: dict[str, Any] = {"augment": list(options.augment)} if options.augment else {}
    if choice is not None:
        report["choice"] = choice.as_json()
    return replace(fitted, report={**report, **fitted.report})


def depth_keys(
    fitting: Fitting, layers: Sequence[int], names: Mapping[str, list[str]]
) -> tuple[dict[str, LayerKeys], dict[str, LayerKeys]]:
    """Key vectors at many depths, ``layers`` among them: of the probe queries to refuse, and of fresh ones by name."""
    depths = {layer for one in layer_sets(len(feed_forward_layers(fitting.model))) for layer in one}
    wanted = sorted({*depths, *layers})
    fresh = {name: _fresh(fitting, name) for name in names.get("retain", [])}
    fresh |= {
        name: list(fitting.rows[name].get("selection") or fitting.rows[name]["probe"]) for name in names["forget"]
    }
    with Hooks(fitting.model, fitting.earlier):
        probe = {name: _keys(fitting, name, fitting.rows[name]["probe"], wanted) for name in names["forget"]}
        return probe, {name: _keys(fitting, name, rows, wanted) for name, rows in fresh.items() if rows}


def _require_queries(options: KeySpaceDetectionOptions, fitting: Fitting, forget: Sequence[str]) -> None:
    for name in forget:
        rows = fitting.rows[name]
        if options.is_chosen and "selection" not in rows:
            raise BakeoutError(
                f"Key Space Detection: {name} has no queries to choose layers, cubes, floor or epsilon by.",
                f"Give {name} a `selection:` file, or one file for everything, or set them all.",
            )
        if options.alpha != "auto":
            continue
        if "calibration" not in rows:
            raise BakeoutError(
                f"`alpha: auto` needs fresh queries of {name}.",
                f"Give {name} a `calibration:` file, or one file for everything, or a number for alpha.",
            )
        if options.epsilon != "auto":
            require_calibration(len(rows["calibration"]), options.epsilon, name)


def _choice(
    options: KeySpaceDetectionOptions,
    fitting: Fitting,
    probe: Mapping[str, LayerKeys],
    retain: Sequence[str],
    layers: Sequence[int],
) -> Choice:
    selection = {name: _widened(fitting, name, "selection") for name in probe}
    selection |= {name: _fresh(fitting, name) for name in retain}
    calibration = [len(fitting.rows[name].get("calibration", ())) for name in probe]
    return choose_structure(
        probe,
        {name: _keys(fitting, name, records, layers) for name, records in selection.items() if records},
        layers="auto" if options.layers == "auto" else layers,
        cubes=options.cubes,
        floor=options.floor,
        epsilon=options.epsilon,
        right={name: right for name, records in selection.items() if (right := _right(fitting, name, records)).any()},
        calibration_queries=min(calibration) if options.alpha == "auto" else None,
        seed=options.seed,
        track=fitting.track,
    )


def _fresh(fitting: Fitting, name: str) -> list[Record]:
    """Queries of a name to retain that its false refusals are not counted on: nothing is fitted on its probe file."""
    rows = fitting.rows[name]
    return [*rows.get("selection", ()), *rows.get("probe", ())]


def _widened(fitting: Fitting, name: str, use: str) -> list[Record]:
    """A name's records and their variants."""
    variants = fitting.variants.get(name, {}).get(use, {})
    return [*fitting.rows[name][use], *(record for records in variants.values() for record in records)]


def _keys(fitting: Fitting, name: str, records: Sequence[Record], layers: Sequence[int]) -> LayerKeys:
    prompts = [record.prompt_ids for record in records]
    track = naming(fitting.track, [name])
    return probe_keys(fitting.model, prompts, layers=layers, batch_size=BATCH, track=track)


def _right(fitting: Fitting, name: str, records: Sequence[Record]) -> NDArray[np.bool_]:
    """Which records the model answers rightly as it is: a refusal of the others costs nothing."""
    right = np.zeros(len(records), dtype=bool)
    answered = [index for index, record in enumerate(records) if record.prompt_ids and record.response_ids]
    if answered:
        right[answered] = answers(
            fitting.model,
            [records[index] for index in answered],
            end=end_tokens(fitting.model, fitting.tokenizer),
            batch_size=BATCH,
            track=naming(fitting.track, [name]),
        ).right
    return right


def _given(options: KeySpaceDetectionOptions, layers: Sequence[int]) -> Structure:
    """The structure of options that leave nothing to be chosen."""
    assert options.cubes != "auto"
    assert options.floor != "auto"
    assert options.epsilon != "auto"
    return Structure(tuple(layers), options.cubes, options.floor, options.epsilon)


def _alpha(alpha: Literal["auto"] | float | TimesLargestOption) -> Literal["auto"] | float | TimesLargest:
    return TimesLargest(alpha.times_largest) if isinstance(alpha, TimesLargestOption) else alpha
