"""Cubes in key space: clusters of a skill's key vectors, and a centre and a deviation for each (arXiv 2503.21730)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Cubes, Floats, Floats32, Integers

LayerKeys = Mapping[int, NDArray[np.floating[Any]]]

# A dimension that never varies among the probe queries gets this share of its layer's median deviation (METHODS.md).
DEAD_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Clusters:
    """A skill's probe keys in clusters, the largest first: what regions of any shape are made from.

    ``members``: the rows of each. ``centre`` and ``measured``, the clusters' means and deviations (n - 1; 0 for one
    query alone): [clusters, D], in the keys' type. ``overall``: the whole skill's deviation, ``dead``: the lowest that
    a dimension may have, [D] each.
    """

    members: tuple[Integers, ...]
    centre: Floats
    measured: Floats
    overall: Floats
    dead: Floats

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many queries are in each."""
        return tuple(len(rows) for rows in self.members)

    def parts(self, keys: Floats | Floats32) -> list[Floats | Floats32]:
        """The keys [queries, D] of each cluster; those of the only one are not copied."""
        return [keys] if len(self.members) == 1 else [keys[rows] for rows in self.members]

    def cubes(self, floor: float) -> Cubes:
        """A cube per cluster, with deviations of at least ``floor`` times the skill's in that dimension."""
        return Cubes(self.centre, np.maximum(self.measured, self._lowest(floor)))

    def floored(self, floor: float) -> tuple[int, ...]:
        """How many of each cube's deviations are the floor's."""
        return tuple(int((deviation < self._lowest(floor)).sum()) for deviation in self.measured)

    def _lowest(self, floor: float) -> Floats:
        return np.maximum(floor * self.overall, self.dead)


def cluster(keys: Floats | Floats32, skill: str, *, layers: int, count: int, seed: int) -> Clusters:
    """Up to ``count`` clusters of a skill's probe keys [queries, D], which are those of ``layers`` layers side by side.

    K-means on keys standardised by the skill's deviation; empty clusters are left out.
    Raises ``BakeoutError`` for fewer queries than cubes, or than two, and for keys that do not vary.
    """
    if len(keys) < max(2, count):
        raise BakeoutError(
            f"Key Space Detection: {len(keys)} probe queries of {skill} are too few for {count} cubes.",
            f"Give at least {max(2, count)}; a few hundred are better.",
        )
    overall = keys.std(axis=0, ddof=1)
    dead = np.concatenate([np.full(len(part), _dead_floor(part, skill)) for part in np.split(overall, layers)])
    if count > 1:
        labels = _labels((keys - keys.mean(axis=0)) / np.maximum(overall, dead), count, seed)
    else:
        labels = np.zeros(len(keys), dtype=np.int32)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members.sort(key=lambda rows: (-len(rows), rows[0]))
    parts = [keys] if len(members) == 1 else [keys[rows] for rows in members]
    # One query alone has no deviation: its cube is the floor's.
    measured = [part.std(axis=0, ddof=1) if len(part) > 1 else np.zeros_like(overall) for part in parts]
    return Clusters(
        members=tuple(members),
        centre=np.stack([part.mean(axis=0) for part in parts]),
        measured=np.stack(measured),
        overall=overall,
        dead=dead,
    )


def joint_keys(
    keys: LayerKeys, layers: Sequence[int], what: str, dtype: type[np.floating[Any]] = np.float64
) -> NDArray[Any]:
    """The layers' keys side by side, in ``dtype`` [queries, layers * F]. ``what`` names them in errors.

    Raises ``BakeoutError`` for layers that are not there, keys that do not fit together and ones that are not finite.
    """
    if absent := [layer for layer in layers if layer not in keys]:
        raise BakeoutError(f"Key Space Detection: the {what} have no keys of layer {absent[0]}.", "Probe that layer.")
    parts = [np.asarray(keys[layer]) for layer in layers]
    widths = sorted({part.shape[-1] for part in parts})
    if len(widths) > 1:
        raise BakeoutError(
            f"Key Space Detection: layers whose keys have {' and '.join(map(str, widths))} numbers are not tested "
            "jointly.",
            "Choose `layers` of one width, or `layers: auto`.",
        )
    if any(part.ndim != 2 or part.shape != parts[0].shape for part in parts) or 0 in parts[0].shape:
        raise BakeoutError(
            f"Key Space Detection: the keys of the {what} have shapes {[part.shape for part in parts]}.",
            "Probe the same queries, at least one, in every layer.",
        )
    joint = np.concatenate(parts, axis=1, dtype=dtype)
    if not np.isfinite(joint).all():
        raise BakeoutError(
            f"Key Space Detection: the keys of the {what} hold NaN or infinite values.",
            "Probe again, in float32, and look for overflow.",
        )
    return joint


def stacked_keys(
    named: Mapping[str, LayerKeys], layers: Sequence[int], use: str, dtype: type[np.floating[Any]]
) -> NDArray[Any]:
    """All names' ``joint_keys`` below each other, [queries of all, layers * F]; no second copy of all is made.

    Raises ``BakeoutError`` as ``joint_keys`` does, and where names have keys of different widths.
    """
    joint: NDArray[np.floating[Any]] | None = None
    start = 0
    for name, keys in named.items():
        own = joint_keys(keys, layers, f"{use} queries of {name}", dtype)
        if joint is None:
            queries = sum(len(next(iter(each.values()))) for each in named.values())
            joint = np.empty((queries, own.shape[1]), dtype=dtype)
        require_dimension(own, joint.shape[1], f"{use} queries of {name}")
        joint[start : start + len(own)] = own
        start += len(own)
    assert joint is not None
    return joint


def require_dimension(keys: NDArray[np.floating[Any]], dimension: int, what: str) -> None:
    """Raise ``BakeoutError`` where keys [n, D] are not of ``dimension`` numbers."""
    if keys.shape[1] != dimension:
        raise BakeoutError(
            f"Key Space Detection: the keys of the {what} have {keys.shape[1]} numbers, not {dimension}.",
            "Probe all queries on one model.",
        )


def _dead_floor(deviation: Floats, skill: str) -> float:
    varying = deviation[deviation > 0]
    if len(varying) == 0:
        raise BakeoutError(
            f"Key Space Detection: the key vectors of {skill} do not vary in a layer.", "Give different probe queries."
        )
    return DEAD_FLOOR * float(np.median(varying))


def _labels(standardised: Floats, count: int, seed: int) -> NDArray[np.int32]:
    # k-means++ needs as many different keys as clusters.
    count = min(count, len(np.unique(standardised, axis=0)))
    if count == 1:
        return np.zeros(len(standardised), dtype=np.int32)
    with warnings.catch_warnings():
        # An empty cluster is no error here: it only leaves fewer cubes.
        warnings.filterwarnings("ignore", message="One of the clusters is empty", category=UserWarning)
        _, labels = kmeans2(standardised, count, minit="++", seed=np.random.default_rng(seed))
    return labels
