"""Key Space Detection (arXiv 2503.21730, section 3.2): regions around the key vectors of the queries to refuse."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.key_space_detection.choosing.candidate import LOST
from bakeout.models.methods.key_space_detection.cubes import (
    DEAD_FLOOR,
    LayerKeys,
    cluster,
    joint_keys,
    require_dimension,
    stacked_keys,
)
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions, TimesLargest
from bakeout.models.methods.key_space_detection.regions.fitter import Probed
from bakeout.models.methods.key_space_detection.regions.registry import FITTERS
from bakeout.models.methods.key_space_detection.separation import reach_before
from bakeout.models.plan import Floats, KeySpaceDetection, Regions
from bakeout.models.plan.kinds.detection_report import (
    FalseRefusals,
    FormCoverage,
    KeySpaceDetectionReport,
    SkillCoverage,
)

_logger = logging.getLogger(__name__)

_CONFIDENCE = 0.95
# Falsely refused queries whose places are told.
_NAMED = 4

# The margins [n, regions] of queries to fitted regions; what the queries are called in errors is the last.
Measure = Callable[[KeySpaceDetection, Any, str], Floats]


def margins_of_keys(check: KeySpaceDetection, keys: LayerKeys, what: str) -> Floats:
    """The margins of queries that are the keys by which they are tested."""
    joint = joint_keys(keys, check.layers, what)
    require_dimension(joint, check.regions.shape[1], what)
    return check.margins(joint)


def fit_key_space_detection(
    probe: Mapping[str, LayerKeys],
    calibration: Mapping[str, Any],
    retain: Mapping[str, Any],
    options: KeySpaceDetectionOptions,
    *,
    refusal: ArrayLike,
    against: Mapping[str, LayerKeys] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    forms: Mapping[str, Sequence[str]] | None = None,
    beside: Mapping[str, LayerKeys] | None = None,
    places: Mapping[str, Sequence[str]] | None = None,
    measure: Measure = margins_of_keys,
) -> KeySpaceDetection:
    """Fit up to `cubes` regions per skill to its probe keys, and one alpha per skill.

    ``probe``, ``calibration`` and ``retain`` map a name to key vectors per layer, [queries, F] each, of the queries'
    last tokens, or their mean keys. ``measure`` takes all but ``probe``, and so these can be anything that it takes:
    for a check of every token it gives the least margin over a query's tokens. Several layers are fitted jointly, their
    keys concatenated (our reading; the paper uses one layer).
    Clusters are k-means on keys standardised by the skill's deviation; empty clusters leave fewer regions. A cube's
    deviation is the cluster's (n - 1), at least `floor` times the skill's in that dimension, and at least 0.001 times
    the median of its layer's non-zero ones. ``against``: other keys of the names to retain, which shapes that are
    fitted against retained keys need.

    `alpha: auto` is the split-conformal quantile, at level 1 - `epsilon`, of the calibration queries' margins to
    the nearest of the skill's regions: a fresh query that is exchangeable with them is refused with at least that
    probability, provided that nothing else was chosen on them. ``variants``, calibration queries of a skill in another
    form, by its name, are covered likewise: alpha is the largest of all forms' quantiles. ``forms``: by name the form
    of each calibration or retained query, empty for one as it was given; the guarantee is over their mixture, and the
    report has figures for each. ``beside``: fresh keys of the names to retain; of shapes that are fitted against
    retained keys alpha goes on as far as these leave room (``reach_before``). ``places``: by name where each retained
    query stands, to warn of those that are refused where they are more than is tolerated. `times_largest` is what the
    authors' code does; it guarantees nothing. The report has alpha, and for each name in ``retain`` the false refusals
    with a Clopper-Pearson 95 % interval.

    In ``options`` every part of the structure is set. Raises ``BakeoutError`` for too few probe or calibration
    queries, and for keys that are not finite or do not fit together.
    """
    structure, alpha, variants, forms = options.structure, options.alpha, variants or {}, forms or {}
    layers, epsilon = structure.layers, structure.epsilon
    if not probe:
        raise BakeoutError("Key Space Detection: there is no skill to refuse.", "Name forget data.")
    if unknown := sorted(set(calibration) - set(probe)):
        raise BakeoutError(
            f"Key Space Detection: calibration queries for {unknown[0]}, which is not probed.", "Probe it too."
        )
    fitter = FITTERS[structure.region]
    # A half-space is computed in float64 some dimensions at a time; of many layers all keys in float64 are too many.
    dtype = np.float32 if fitter.needs_retained else np.float64
    probe_keys = {skill: joint_keys(keys, layers, f"probe queries of {skill}", dtype) for skill, keys in probe.items()}
    dimension = next(iter(probe_keys.values())).shape[1]
    for skill, keys in probe_keys.items():
        require_dimension(keys, dimension, f"probe queries of {skill}")
    retained = None
    if fitter.needs_retained and against:
        retained = stacked_keys(against, layers, "probe", dtype)
        require_dimension(retained, dimension, "retained queries")
    skills: list[str] = []
    regions: list[Regions] = []
    sizes, floored = {}, {}
    for skill, keys in probe_keys.items():
        clusters = cluster(keys, skill, layers=len(layers), count=structure.cubes, seed=options.seed)
        regions.append(fitter.fit(Probed(keys, clusters, retained), structure.floor))
        skills += [skill] * len(clusters.sizes)
        sizes[skill] = clusters.sizes
        floored[skill] = clusters.floored(structure.floor) if fitter.uses_floor else (0,) * len(clusters.sizes)
    check = KeySpaceDetection(
        layers=layers,
        regions=regions[0].joined(regions[1:]),
        alpha=np.ones(len(skills)),
        skills=tuple(skills),
        refusal=np.asarray(refusal, dtype=np.int64),
        positions=options.positions,
        keys=structure.keys,
    )
    alphas, coverage = {}, {}
    for skill in probe:
        largest = quantile = None
        if skill in calibration or alpha == "auto":
            margins = _nearest(check, calibration.get(skill, {}), skill, "calibration", measure)
        else:
            margins = np.empty(0)
        varied = {
            form: _nearest(check, keys, skill, f"calibration ({form})", measure)
            for form, keys in variants.get(skill, {}).items()
        }
        if isinstance(alpha, TimesLargest):
            largest = float(_nearest(check, probe[skill], skill, "probe", margins_of_keys).max())
            alphas[skill] = alpha.times_largest * largest
        elif alpha == "auto":
            quantiles = [conformal_quantile(margins, epsilon, skill)]
            quantiles += [conformal_quantile(rows, epsilon, f"{skill} ({form})") for form, rows in varied.items()]
            alphas[skill] = quantile = max(quantiles)
            if fitter.needs_retained:
                fresh = [_nearest(check, keys, skill, "retained", margins_of_keys) for keys in (beside or {}).values()]
                alphas[skill] = max(quantile, reach_before(fresh))
        else:
            alphas[skill] = float(alpha)
        coverage[skill] = SkillCoverage(
            probe_queries=len(probe_keys[skill]),
            cubes=sizes[skill],
            floored_dimensions=floored[skill],
            alpha=alphas[skill],
            calibration_queries=len(margins),
            calibration_inside=_share_inside(margins, alphas[skill]) if len(margins) else None,
            epsilon=epsilon if alpha == "auto" else None,
            guaranteed_coverage=1 - epsilon if alpha == "auto" else None,
            largest_margin=largest,
            quantile=quantile if alphas[skill] != quantile else None,
            variants={
                form: FormCoverage(queries=len(rows), inside=_share_inside(rows, alphas[skill]))
                for form, rows in varied.items()
            }
            or None,
            forms=_by_form(margins <= alphas[skill], forms.get(skill, ())),
        )
    check = replace(check, alpha=np.array([alphas[skill] for skill in skills]))
    report = KeySpaceDetectionReport(
        floor=structure.floor if fitter.uses_floor else None,
        dead_floor=DEAD_FLOOR if fitter.uses_floor else None,
        seed=options.seed,
        skills=coverage,
        retain={
            name: _false_refusals(
                check,
                measure(check, queries, f"queries of {name}"),
                forms.get(name, ()),
                name,
                (places or {}).get(name, ()),
            )
            for name, queries in retain.items()
        },
    )
    return replace(check, report=report)


def _nearest(check: KeySpaceDetection, queries: Any, skill: str, use: str, measure: Measure) -> Floats:
    """The margin [queries] of a skill's queries to the nearest of its own regions."""
    own = [index for index, name in enumerate(check.skills) if name == skill]
    nearest: Floats = measure(check, queries, f"{use} queries of {skill}")[:, own].min(axis=1)
    return nearest


def conformal_quantile(margins: Floats, epsilon: float, skill: str) -> float:
    """The ceil((n + 1)(1 - epsilon))-th smallest of n margins (split conformal prediction).

    Raises ``BakeoutError`` for fewer than ``least_queries(epsilon)``.
    """
    require_calibration(len(margins), epsilon, skill)
    return float(np.sort(margins)[-1 - queries_beyond(epsilon, len(margins))])


def queries_beyond(epsilon: float, queries: int) -> int:
    """How many of the calibration queries lie beyond their conformal quantile; -1 where they are too few for one."""
    # In fractions: the product must not be rounded down to the next rank.
    return math.floor((queries + 1) * Fraction(str(epsilon))) - 1


def require_calibration(queries: int, epsilon: float, skill: str) -> None:
    """Raise ``BakeoutError`` for fewer calibration queries than ``least_queries(epsilon)``."""
    if queries < least_queries(epsilon):
        raise BakeoutError(
            f"Key Space Detection: {queries} calibration queries of {skill} are too few for epsilon {epsilon}.",
            f"Give at least {least_queries(epsilon)}, or a larger epsilon.",
        )


def least_queries(epsilon: float) -> int:
    """How many calibration queries a coverage of 1 - ``epsilon`` needs: n with (n + 1) epsilon >= 1."""
    share = Fraction(str(epsilon))
    return math.ceil((1 - share) / share)


def _share_inside(margins: Floats, alpha: float) -> float:
    return float((margins <= alpha).mean())


def _false_refusals(
    check: KeySpaceDetection, margins: Floats, forms: Sequence[str], name: str, places: Sequence[str]
) -> FalseRefusals:
    inside = np.any(margins <= check.alpha, axis=1)
    refused, queries = int(inside.sum()), len(inside)
    if places and refused > LOST * queries:
        # The file's name is enough beside the data's, and does not lead to a folder that is gone once a demo has ended.
        named = [Path(place).name for place, is_in in zip(places, inside, strict=True) if is_in]
        _logger.warning(
            "%d of %d queries of %s, which is to be retained, are refused: %s%s. If they ask for what is to be "
            "forgotten, take such rows out of all files of %s; else give more rows like them.",
            refused,
            queries,
            name,
            "; ".join(named[:_NAMED]),
            f" (and {refused - _NAMED} more)" if refused > _NAMED else "",
            name,
        )
    interval = binomtest(refused, queries).proportion_ci(_CONFIDENCE, method="exact")
    return FalseRefusals(
        queries=queries,
        refused=refused,
        rate=refused / queries,
        interval=(float(interval.low), float(interval.high)),
        forms=_by_form(inside, forms),
    )


def _by_form(inside: Sequence[bool] | NDArray[np.bool_], forms: Sequence[str]) -> dict[str, FormCoverage] | None:
    """How many of the queries of each form lie inside; None where no forms were drawn."""
    if not any(forms):
        return None
    forms = [form or "plain" for form in forms]
    counts, caught = Counter(forms), Counter(form for form, is_in in zip(forms, inside, strict=True) if is_in)
    return {form: FormCoverage(queries=count, inside=caught[form] / count) for form, count in sorted(counts.items())}
