"""Half-spaces without some of the keys that they were fitted to, from products of keys that are computed once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.linalg import solve

from bakeout.models.methods.key_space_detection.regions.discriminant import Pair, discriminant, shrinkages_of
from bakeout.models.methods.key_space_detection.regions.fitter import Marks, Probed, Refits, Refitted
from bakeout.models.plan import Floats, Floats32


class HalfSpaceRefits:
    """Half-spaces that are fitted to part of what was ``probed``, and the margins of ``judged`` keys to the nearest.

    Of more dimensions than keys, these stay standardised and shrunk as all of them are, so that a refit is one system
    of as many equations as keys. It is about the discriminant of the others alone: on a real model's keys the distances
    of two sets of layers are 1.92 and 1.79 for its 1.88 and 1.80, of covariances with slow spectra they are larger.
    """

    def __init__(self, probed: Probed, judged: Mapping[str, Floats32]) -> None:
        assert probed.retained is not None
        pairs = [Pair(keys, probed.retained, probed.dtype) for keys in probed.clusters.parts(probed.keys)]
        self._members = probed.clusters.members
        self._refits: list[Refits] = [
            _Direct(pair, judged) if pair.dimensions <= pair.rows else _Kernel(pair, judged) for pair in pairs
        ]

    def fitted(self, probe: Marks, against: Marks) -> Refitted | None:
        """Fitted to those of the skill's keys [n] and of the retained ones [m] that are marked; None to none."""
        own = [refits.fitted(probe[rows], against) for refits, rows in zip(self._refits, self._members, strict=True)]
        fitted = [margins for margins in own if margins is not None]
        return (lambda name, rows: np.min([margins(name, rows) for margins in fitted], axis=0)) if fitted else None


class _Direct:
    """A discriminant of the keys that are left."""

    def __init__(self, pair: Pair, judged: Mapping[str, Floats32]) -> None:
        self._pair = pair
        self._judged = judged

    def fitted(self, probe: Marks, against: Marks) -> Refitted | None:
        if not probe.any() or not against.any():
            return None
        weight, bias = discriminant(self._pair.skill[probe], self._pair.retained[against], self._pair.dtype)
        return lambda name, rows: -(self._judged[name][rows] @ weight + bias)


class _Kernel:
    """Products of both classes' keys with each other and with judged ones, in units in which S is identity + R^T R."""

    def __init__(self, pair: Pair, judged: Mapping[str, Floats32]) -> None:
        shrinkages = shrinkages_of(pair)
        self._kept = np.repeat([1 - shrinkage.share for shrinkage in shrinkages], [len(pair.skill), len(pair.retained)])
        self._products = np.zeros((pair.rows, pair.rows), dtype=pair.dtype)
        self._judged = {name: np.zeros((len(keys), pair.rows), dtype=pair.dtype) for name, keys in judged.items()}
        for part in pair.parts():
            _, diagonal = part.within(shrinkages)
            root = np.sqrt(diagonal)
            keys = np.concatenate([part.centred[0] + part.difference, part.centred[1]]) / root
            self._products += keys @ keys.T
            for name, rows in judged.items():
                standardised = (rows[:, part.columns].astype(pair.dtype) - part.mean) / part.deviation
                self._judged[name] += (standardised / root) @ keys.T

    def fitted(self, probe: Marks, against: Marks) -> Refitted | None:
        counts = (int(probe.sum()), int(against.sum()))
        if 0 in counts:
            return None
        rows = np.flatnonzero(np.concatenate([probe, against]))
        products = self._products[np.ix_(rows, rows)]

        def centred(values: Floats) -> Floats:
            return np.concatenate([own - own.mean(axis=0) for own in (values[: counts[0]], values[counts[0] :])])

        # The weight is a sum of the keys: the difference of means, less what S^-1 takes of it.
        difference = np.repeat([1 / counts[0], -1 / counts[1]], counts).astype(products.dtype)
        scale = np.sqrt(self._kept[rows] / len(rows)).astype(products.dtype)
        within = scale[:, None] * centred(centred(products).T) * scale + np.eye(len(rows), dtype=products.dtype)
        along = products @ difference
        weight = difference - centred(scale * solve(within, scale * centred(along), assume_a="pos"))
        distance = float(along @ weight)
        if distance <= 0:
            return None
        spread, at_mean = math.sqrt(distance), float(products[: counts[0]].mean(axis=0) @ weight)
        return lambda name, judged: (at_mean - self._judged[name][np.ix_(judged, rows)] @ weight) / spread
