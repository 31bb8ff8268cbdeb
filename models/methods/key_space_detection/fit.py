"""Key Space Detection (arXiv 2503.21730, section 3.2) from its options: probing, choosing, calibrating."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bakeout.models.data.forms.kinds import Kind
from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Use
from bakeout.models.errors import BakeoutError
from bakeout.models.methods import probed
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.choosing.candidate import Choice
from bakeout.models.methods.key_space_detection.choosing.structure import (
    choose_structure,
    joint_choice,
    layer_sets,
    require_retained,
)
from bakeout.models.methods.key_space_detection.choosing.unseen_forms import Forms
from bakeout.models.methods.key_space_detection.cubes import LayerKeys
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection, margins_of_keys
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.queries import (
    RetainedQueries,
    counted_once,
    least_margins,
    query_keys,
    require_enough,
    require_queries,
    retained_queries,
)
from bakeout.models.methods.key_space_detection.query_end import query_end
from bakeout.models.methods.key_space_detection.query_start import query_start
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.key_space_detection.regions.registry import FITTERS, needs_retained
from bakeout.models.methods.key_space_detection.served import (
    EVERYDAY_QUESTIONS,
    as_served,
    earlier_refusals,
    retained_names,
)
from bakeout.models.methods.search_space import Settings
from bakeout.models.network.families import model_limits
from bakeout.models.network.generation import named_ends
from bakeout.models.network.key_sites import key_sites
from bakeout.models.network.teacher_forcing import FEW_CORRECT
from bakeout.models.plan import Floats, Integers, Keys, KeySpaceDetection

_logger = logging.getLogger(__name__)

# By data name, use and kind of variant.
_Widening = Mapping[str, Mapping[str, Mapping[Kind, Sequence[Record]]]]


def fit(options: KeySpaceDetectionOptions, fitting: Fitting) -> KeySpaceDetection:
    """Regions on the probe queries, their structure chosen on the selection queries, alpha on the calibration queries.

    A half-space's alpha goes on as far as the retained names' selection queries leave room, where everyday questions
    are among these: they stand for strangers, which no other name keeps out.

    Conversations are probed, selected and calibrated in drawn forms (``as_served``), of all names, everyday questions
    among those to retain, and the report has a figure for each form. If `augment` names variants, those of the probe
    queries are probed too, those of the selection queries must be refused like these, and alpha covers the calibration
    queries themselves and each kind of variant.

    Raises ``BakeoutError``, before anything is probed, where queries are lacking or are too few for the guarantee.
    """
    require_queries(options, fitting.data, fitting.rows)
    fitting, mixture = as_served(options, counted_once(fitting))
    forget, retain = options.names(fitting.data)["forget"], retained_names(options, fitting)
    if options.is_chosen:
        require_retained(retain)
    widening: _Widening = {
        name: {
            use: _variants(fitting, options, name, use)
            for use in ("probe", "selection", "calibration")
            if use in fitting.rows[name]
        }
        for name in forget
    }
    calibration_queries = _calibration_queries(options, fitting, widening)
    ends = named_ends(fitting.model, fitting.tokenizer)
    refusal = refusal_tokens(options.refusal, fitting.tokenizer, ends.tokens)
    model_limits(fitting.model).require(refusal, fitting.tokenizer, "The refusal")
    if ends.disagreement:
        _logger.warning("%s. The refusal ends with %d.", ends.disagreement, refusal[-1])
    queries = {name: retained_queries(fitting, name, fits=needs_retained(options.region)) for name in retain}
    start = _query_start(options, fitting, [*forget, *retain])
    probed_keys = {
        keys: _probed(options, fitting, forget, queries, keys, layers, widening, start)
        for keys, layers in _places(options, fitting).items()
    }
    choice: Choice | None = None
    if options.is_chosen:
        choice = joint_choice(
            [
                _choice(options, fitting, probed, queries, widening, start, calibration_queries)
                for probed in probed_keys.values()
            ]
        )
        settled = options.with_structure(choice.chosen.structure)
    else:
        (only,) = probed_keys.values()
        settled = options.model_copy(update={"layers": only.layers, "keys": only.keys})
    keys = settled.structure.keys
    probe, against, layers = probed_keys[keys].probe, probed_keys[keys].against, probed_keys[keys].layers
    if fitting.cache is None:
        # Another fit may choose other layers: for its sake what is kept is that of all of them.
        layers = list(settled.structure.layers)
    calibrated = [name for name in forget if "calibration" in fitting.rows[name]]
    # False refusals are best counted on queries that no other choice was made on.
    counted = {name: fitting.rows[name].get("calibration") or own.fresh for name, own in queries.items()}

    beside = {}
    # Strangers lie in the room that the retained names leave, unless everyday questions, which stand for them, are
    # among these. And where every token is tested, that room ends before the nearest token.
    has_room = EVERYDAY_QUESTIONS in queries and options.positions != "every"
    if FITTERS[settled.structure.region].needs_retained and has_room:
        beside = {
            name: query_keys(fitting, name, own.fresh, layers, keys, start)
            for name, own in queries.items()
            if own.fresh
        }

    def measured(name: str, queries: Sequence[Record]) -> Any:
        """What alpha is set by: if every token is tested the least margin over a query's, or else its tested key."""
        return queries if options.positions == "every" else query_keys(fitting, name, queries, layers, keys, start)

    def least(check: KeySpaceDetection, queries: Sequence[Record], _what: str) -> Floats:
        return least_margins(fitting, queries, check)

    fitted = fit_key_space_detection(
        probe,
        {name: measured(name, fitting.rows[name]["calibration"]) for name in calibrated},
        {name: measured(name, queries) for name, queries in counted.items()},
        settled,
        refusal=refusal,
        against=against,
        variants={
            name: {
                kind: measured(f"{name}, {kind}", records) for kind, records in widening[name]["calibration"].items()
            }
            for name in calibrated
        },
        forms=_forms({**counted, **{name: fitting.rows[name]["calibration"] for name in calibrated}}),
        beside=beside,
        places={
            name: [record.where for record in queries]
            for name, queries in counted.items()
            if name != EVERYDAY_QUESTIONS
        },
        measure=least if options.positions == "every" else margins_of_keys,
    )
    varied = {kind for uses in widening.values() for kinds in uses.values() for kind in kinds}
    report = replace(
        fitted.report,
        augment=tuple(kind for kind in options.variants if kind in varied) or None,
        mixture=mixture or None,
        choice=None if choice is None else choice.figures(),
    )
    return replace(
        fitted,
        report=report,
        other_ends=_other_ends(ends.tokens, refusal, fitting),
        query_end=_query_end(options, fitting, [*forget, *retain]),
        query_start=start or (),
    )


def _calibration_queries(options: KeySpaceDetectionOptions, fitting: Fitting, widening: _Widening) -> int | None:
    """How many queries the smallest set has that needs a quantile of its own; None where alpha is given.

    These are each skill's calibration queries, and each kind of their variants; a warning names kinds that have none.
    Raises ``BakeoutError`` for a set that is too small for the guarantee.
    """
    if options.alpha != "auto":
        return None
    sizes: dict[str, int] = {}
    for name, uses in widening.items():
        varied = uses["calibration"]
        sizes[name] = len(fitting.rows[name]["calibration"])
        sizes |= {f"{name} ({kind})": len(records) for kind, records in varied.items()}
        if left_out := [kind for kind in options.variants if kind not in varied]:
            _logger.warning(
                "%s has no calibration variants of %s: alpha does not cover these.", name, ", ".join(left_out)
            )
    for skill, queries in sizes.items():
        require_enough(options, queries, skill)
    return min(sizes.values())


def chosen(fitted: KeySpaceDetection) -> Settings:
    """The choices of the fit: keys, and where more was left to it, region, layers, cubes, floor and epsilon."""
    choice = fitted.report.choice
    more = {} if choice is None else {"region": fitted.regions.name, **choice.chosen.as_json()}
    return {**more, "keys": fitted.keys}


def _other_ends(ends: Sequence[int], refusal: Integers, fitting: Fitting) -> tuple[int, ...]:
    """The tokens that end a text beside the refusal's, those that the model has: some name tokens that it has not."""
    embeddings = model_limits(fitting.model).embeddings
    return tuple(end for end in ends if end != refusal[-1] and (embeddings is None or end < embeddings))


def _query_end(options: KeySpaceDetectionOptions, fitting: Fitting, names: Sequence[str]) -> tuple[int, ...]:
    """The end of every query, where positions are tested that depend on it."""
    if options.positions not in ("query", "mean"):
        return ()
    return query_end(options.query_end, fitting.tokenizer, _all_queries(fitting, names))


def _query_start(options: KeySpaceDetectionOptions, fitting: Fitting, names: Sequence[str]) -> tuple[int, ...] | None:
    """What opens every query, where the mean from there on is tested; None where it is not."""
    if options.positions != "mean":
        return None
    return query_start(options.query_start, fitting.tokenizer, _all_queries(fitting, names))


def _all_queries(fitting: Fitting, names: Sequence[str]) -> list[list[int]]:
    queries = [record.prompt_ids for name in names for records in fitting.rows[name].values() for record in records]
    return [query for query in queries if query]


@dataclass(frozen=True, eq=False)
class _Probed:
    """Keys of one kind in some layers: by name those to forget, and those to fit against; and the forms of these."""

    keys: Keys
    layers: list[int]
    probe: Mapping[str, LayerKeys]
    against: Mapping[str, LayerKeys]
    probe_forms: Mapping[str, Sequence[str]]
    against_forms: Mapping[str, Sequence[str]]


def _places(options: KeySpaceDetectionOptions, fitting: Fitting) -> dict[Keys, list[int]]:
    """The layers whose keys are looked at, by the kind of the keys.

    Raises ``BakeoutError`` where the model has no keys of the kind that is asked for.
    """
    available = {keys: len(key_sites(fitting.model, keys)) for keys in get_args(Keys)}
    kinds = [keys for keys, count in available.items() if count] if options.keys == "auto" else [options.keys]
    if options.layers != "auto":
        kinds = kinds[:1]
    if missing := [keys for keys in kinds if not available[keys]]:
        others = [keys for keys, count in available.items() if count]
        raise BakeoutError(
            f"Key Space Detection: the model has no {missing[0].replace('_', ' ')} to look at.",
            f"Set `keys` to {' or '.join(others)}.",
        )
    if options.layers == "auto":
        return {keys: sorted({layer for own in layer_sets(available[keys]) for layer in own}) for keys in kinds}
    return {keys: [available[keys] - 1] if options.layers == "last" else sorted(set(options.layers)) for keys in kinds}


def _probed(
    options: KeySpaceDetectionOptions,
    fitting: Fitting,
    forget: Sequence[str],
    retained: Mapping[str, RetainedQueries],
    keys: Keys,
    layers: list[int],
    widening: _Widening,
    start: Sequence[int] | None,
) -> _Probed:
    probe = {name: _widened(fitting, widening, name, "probe") for name in forget}
    against = {name: _fitted_against(fitting, options, name, own) for name, own in retained.items() if own.fitted}

    def keys_of(queries: Mapping[str, list[Record]]) -> dict[str, LayerKeys]:
        return {name: query_keys(fitting, name, records, layers, keys, start) for name, records in queries.items()}

    return _Probed(keys, layers, keys_of(probe), keys_of(against), _forms(probe), _forms(against))


def _forms(queries: Mapping[str, Sequence[Record]]) -> dict[str, list[str]]:
    return {name: [record.form for record in records] for name, records in queries.items()}


def _choice(
    options: KeySpaceDetectionOptions,
    fitting: Fitting,
    probed: _Probed,
    retained: Mapping[str, RetainedQueries],
    widening: _Widening,
    start: Sequence[int] | None,
    calibration_queries: int | None,
) -> Choice:
    probe, layers, keys = probed.probe, probed.layers, probed.keys
    selection = {name: _widened(fitting, widening, name, "selection") for name in probe}
    selection |= {name: list(own.fresh) for name, own in retained.items()}
    selection = {name: records for name, records in selection.items() if records}
    return choose_structure(
        probe,
        {name: query_keys(fitting, name, records, layers, keys, start) for name, records in selection.items()},
        region=options.region,
        against=probed.against,
        forms=Forms(probed.probe_forms, probed.against_forms, _forms(selection)),
        keys=keys,
        blocks=[site.block for site in key_sites(fitting.model, keys)],
        layers="auto" if options.layers == "auto" else layers,
        cubes=options.cubes,
        floor=options.floor,
        epsilon=options.epsilon,
        correct={
            name: correct
            for name, records in selection.items()
            if (correct := correctly_answered(fitting, name, records)) is not None
        },
        calibration_queries=calibration_queries,
        seed=options.seed,
        track=fitting.track,
    )


def _variants(
    fitting: Fitting, options: KeySpaceDetectionOptions, name: str, use: Use
) -> Mapping[Kind, Sequence[Record]]:
    """A name's variants, of those kinds that any of its rows has one of."""
    behind_refusals = {"after_refusal", "follow_up"}.intersection(options.variants)
    refused = earlier_refusals(options, fitting)[use] if behind_refusals else ()
    variants = fitting.variants(name, use, options.variants, seed=options.seed, refused=refused)
    return {kind: records for kind, records in variants.items() if records}


def _widened(fitting: Fitting, widening: _Widening, name: str, use: Literal["probe", "selection"]) -> list[Record]:
    """A name's records and their variants."""
    return [*fitting.rows[name][use], *(record for records in widening[name][use].values() for record in records)]


def _fitted_against(
    fitting: Fitting, options: KeySpaceDetectionOptions, name: str, queries: RetainedQueries
) -> list[Record]:
    """A retained name's queries to fit against, in such forms as the skill's: the form must not tell them apart.

    Where a part of the probe file is kept fresh, its queries have no variants.
    """
    is_whole = "selection" in fitting.rows[name]
    varied = _variants(fitting, options, name, "probe") if is_whole else {}
    return [*queries.fitted, *(record for records in varied.values() for record in records)]


def correctly_answered(fitting: Fitting, name: str, records: Sequence[Record]) -> NDArray[np.bool_] | None:
    """Which records the unedited model answers correctly: refusing the others costs nothing.

    What cannot be told counts as correct: rows without a response, and queries in a drawn form, whose answer may be
    another. None where the model answers few rows as expected: it answers in its own words, and every query counts.
    """
    tried = [
        index
        for index, record in enumerate(records)
        if record.prompt_ids and record.response_ids and record.form in ("", "plain")
    ]
    if not tried:
        return None
    exact = probed.exact_answers(fitting, name, [records[index] for index in tried])
    if exact.mean() < FEW_CORRECT:
        _logger.info("%s: the model answers few rows exactly as expected, so every query counts.", name)
        return None
    correct = np.ones(len(records), dtype=bool)
    correct[tried] = exact
    return correct
