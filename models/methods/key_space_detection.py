"""Key Space Detection (arXiv 2503.21730, section 3.2): cubes around the key vectors of the queries to refuse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import kmeans2
from scipy.stats import binomtest

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Floats, KeySpaceDetection, Positions

LayerKeys = Mapping[int, NDArray[np.floating[Any]]]

# A dimension that never varies among the probe queries gets this share of its layer's median deviation (METHODS.md).
_DEAD_FLOOR = 1e-3
_CONFIDENCE = 0.95


def fit_key_space_detection(
    probe: Mapping[str, LayerKeys],
    calibration: Mapping[str, LayerKeys],
    retain: Mapping[str, LayerKeys],
    *,
    layers: Sequence[int],
    refusal: ArrayLike,
    cubes: int = 1,
    alpha: float | Literal["auto"] = "auto",
    epsilon: float = 0.005,
    positions: Positions = "query",
    floor: float = 0.1,
    seed: int = 0,
) -> KeySpaceDetection:
    """Fit up to ``cubes`` cubes per skill around its probe keys, and one alpha per skill.

    ``probe``, ``calibration`` and ``retain`` map a name to key vectors per layer, [queries, F] each, of the queries'
    last tokens. Several layers are fitted jointly, their keys concatenated (our reading; the paper uses one layer).
    Clusters are k-means on keys standardised by the skill's deviation; empty clusters leave fewer cubes. A deviation
    is the cluster's (n - 1), at least ``floor`` times the skill's in that dimension, and at least 0.001 times the
    median of its layer's non-zero ones.

    ``alpha`` ``auto``: the split-conformal quantile, at level 1 - ``epsilon``, of the calibration queries' margins to
    the nearest of the skill's cubes: a fresh query that is exchangeable with them is refused with at least that
    probability, provided that they chose nothing else. The report carries it, and for each name in ``retain`` the
    false refusals with a Clopper-Pearson 95 % interval.

    Raises ``BakeoutError`` for too few probe or calibration queries, keys that are not finite or do not fit together,
    and options out of range.
    """
    layers = tuple(sorted(set(layers)))
    _require_options(layers, cubes, alpha, epsilon, floor)
    if not probe:
        raise BakeoutError("Key Space Detection: there is no skill to refuse.", "Name forget data.")
    if unknown := sorted(set(calibration) - set(probe)):
        raise BakeoutError(
            f"Key Space Detection: calibration queries for {unknown[0]}, which is not probed.", "Probe it too."
        )
    probe_keys = {skill: _joint(keys, layers, f"probe queries of {skill}") for skill, keys in probe.items()}
    dimension = next(iter(probe_keys.values())).shape[1]
    for skill, keys in probe_keys.items():
        _require_dimension(keys, dimension, f"probe queries of {skill}")
    skills: list[str] = []
    centres, deviations, reports = [], [], {}
    for skill, keys in probe_keys.items():
        centre, deviation, reports[skill] = _cubes(keys, skill, len(layers), cubes, floor, seed)
        centres.append(centre)
        deviations.append(deviation)
        skills += [skill] * len(centre)
    check = KeySpaceDetection(
        layers=layers,
        centre=np.concatenate(centres),
        deviation=np.concatenate(deviations),
        alpha=np.ones(len(skills)),
        skills=tuple(skills),
        refusal=np.asarray(refusal, dtype=np.int64),
        positions=positions,
    )
    alphas = {}
    for skill in probe:
        if skill in calibration or alpha == "auto":
            margins = _skill_margins(check, calibration.get(skill, {}), skill)
        else:
            margins = np.empty(0)
        alphas[skill] = _conformal_quantile(margins, epsilon, skill) if alpha == "auto" else float(alpha)
        reports[skill] |= _coverage(margins, alphas[skill], epsilon if alpha == "auto" else None)
    check = replace(check, alpha=np.array([alphas[skill] for skill in skills]))
    report = {
        "floor": floor,
        "dead_floor": _DEAD_FLOOR,
        "seed": seed,
        "skills": reports,
        "retain": {name: _false_refusals(check, keys, name) for name, keys in retain.items()},
    }
    return replace(check, report=report)


def _cubes(
    keys: Floats, skill: str, layers: int, count: int, floor: float, seed: int
) -> tuple[Floats, Floats, dict[str, Any]]:
    """Centres and deviations [cubes, D] of one skill's clusters, the largest first, and what to report."""
    if len(keys) < max(2, count):
        raise BakeoutError(
            f"Key Space Detection: {len(keys)} probe queries of {skill} are too few for {count} cubes.",
            f"Give at least {max(2, count)}; a few hundred are better.",
        )
    overall = keys.std(axis=0, ddof=1)
    dead = np.concatenate([np.full(len(part), _dead_floor(part, skill)) for part in np.split(overall, layers)])
    lowest = np.maximum(floor * overall, dead)
    labels = _clusters((keys - keys.mean(axis=0)) / np.maximum(overall, dead), count, seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members.sort(key=lambda rows: (-len(rows), rows[0]))
    # One query alone has no deviation: its cube is the floor's.
    measured = [keys[rows].std(axis=0, ddof=1) if len(rows) > 1 else np.zeros_like(overall) for rows in members]
    report = {
        "probe_queries": len(keys),
        "cubes": [len(rows) for rows in members],
        "floored_dimensions": [int((deviation < lowest).sum()) for deviation in measured],
    }
    centre = np.stack([keys[rows].mean(axis=0) for rows in members])
    return centre, np.maximum(np.stack(measured), lowest), report


def _dead_floor(deviation: Floats, skill: str) -> float:
    varying = deviation[deviation > 0]
    if len(varying) == 0:
        raise BakeoutError(
            f"Key Space Detection: the key vectors of {skill} do not vary in a layer.", "Give different probe queries."
        )
    return _DEAD_FLOOR * float(np.median(varying))


def _clusters(standardised: Floats, count: int, seed: int) -> NDArray[np.int32]:
    # k-means++ needs as many different keys as clusters.
    count = min(count, len(np.unique(standardised, axis=0)))
    if count == 1:
        return np.zeros(len(standardised), dtype=np.int32)
    with warnings.catch_warnings():
        # An empty cluster is no fault here: it only leaves fewer cubes.
        warnings.filterwarnings("ignore", message="One of the clusters is empty", category=UserWarning)
        _, labels = kmeans2(standardised, count, minit="++", seed=np.random.default_rng(seed))
    return labels


def _margins(check: KeySpaceDetection, keys: LayerKeys, what: str) -> Floats:
    joint = _joint(keys, check.layers, what)
    _require_dimension(joint, check.centre.shape[1], what)
    return check.margins(joint)


def _skill_margins(check: KeySpaceDetection, keys: LayerKeys, skill: str) -> Floats:
    """The margin [queries] of a skill's calibration queries to the nearest of its own cubes."""
    own = [index for index, name in enumerate(check.skills) if name == skill]
    nearest: Floats = _margins(check, keys, f"calibration queries of {skill}")[:, own].min(axis=1)
    return nearest


def _conformal_quantile(margins: Floats, epsilon: float, skill: str) -> float:
    """The ceil((n + 1)(1 - epsilon))-th smallest of n margins (split conformal prediction)."""
    # In fractions: the product must not be rounded up to the next rank.
    level = 1 - Fraction(str(epsilon))
    rank = math.ceil((len(margins) + 1) * level)
    if rank > len(margins):
        raise BakeoutError(
            f"Key Space Detection: {len(margins)} calibration queries of {skill} are too few for epsilon {epsilon}.",
            f"Give at least {math.ceil(level / (1 - level))}, or a larger epsilon.",
        )
    return float(np.sort(margins)[rank - 1])


def _coverage(margins: Floats, alpha: float, epsilon: float | None) -> dict[str, Any]:
    return {
        "alpha": alpha,
        "calibration_queries": len(margins),
        "calibration_inside": float((margins <= alpha).mean()) if len(margins) else None,
        "epsilon": epsilon,
        "guaranteed_coverage": None if epsilon is None else 1 - epsilon,
    }


def _false_refusals(check: KeySpaceDetection, keys: LayerKeys, name: str) -> dict[str, Any]:
    margins = _margins(check, keys, f"queries of {name}")
    refused, queries = int((margins <= check.alpha).any(axis=1).sum()), len(margins)
    interval = binomtest(refused, queries).proportion_ci(_CONFIDENCE, method="exact")
    return {
        "queries": queries,
        "refused": refused,
        "rate": refused / queries,
        "interval": [float(interval.low), float(interval.high)],
    }


def _joint(keys: LayerKeys, layers: Sequence[int], what: str) -> Floats:
    """The layers' keys side by side, float64 [queries, layers * F]."""
    if absent := [layer for layer in layers if layer not in keys]:
        raise BakeoutError(f"Key Space Detection: the {what} have no keys of layer {absent[0]}.", "Probe that layer.")
    parts = [np.asarray(keys[layer], dtype=np.float64) for layer in layers]
    if any(part.ndim != 2 or part.shape != parts[0].shape for part in parts) or 0 in parts[0].shape:
        raise BakeoutError(
            f"Key Space Detection: the keys of the {what} have shapes {[part.shape for part in parts]}.",
            "Probe the same queries, at least one, in every layer.",
        )
    joint = np.concatenate(parts, axis=1)
    if not np.isfinite(joint).all():
        raise BakeoutError(
            f"Key Space Detection: the keys of the {what} hold NaN or infinite values.",
            "Probe again, in float32, and look for overflow.",
        )
    return joint


def _require_dimension(keys: Floats, dimension: int, what: str) -> None:
    if keys.shape[1] != dimension:
        raise BakeoutError(
            f"Key Space Detection: the keys of the {what} have {keys.shape[1]} numbers, not {dimension}.",
            "Probe all queries on one model.",
        )


def _require_options(
    layers: Sequence[int], cubes: int, alpha: float | Literal["auto"], epsilon: float, floor: float
) -> None:
    if not layers:
        raise BakeoutError("Key Space Detection: no layer is named.", "Name at least one layer.")
    if cubes < 1:
        raise BakeoutError(f"Key Space Detection: {cubes} cubes per skill.", "Choose at least 1.")
    if alpha != "auto" and not (isinstance(alpha, (int, float)) and 0 < alpha < math.inf):
        raise BakeoutError(
            f"Key Space Detection: alpha is {alpha!r}, neither a positive number nor 'auto'.", "Choose 'auto'."
        )
    if not 0 < epsilon < 1:
        raise BakeoutError(
            f"Key Space Detection: epsilon {epsilon} is not between 0 and 1.", "Choose a share such as 0.005."
        )
    if not 0 <= floor < math.inf:
        raise BakeoutError(f"Key Space Detection: the floor {floor} is not a share.", "Choose one such as 0.1.")
