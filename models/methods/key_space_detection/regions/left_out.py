"""Discriminants without some of the keys that they were fitted to, from products of keys that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from bakeout.models.methods.key_space_detection.regions.discriminant import Pair, shrinkages_of, spread_of
from bakeout.models.methods.key_space_detection.regions.fitter import Probed
from bakeout.models.plan import Floats, Floats32

# The least share of a dimension's variance that counts as shrunk.
_LEAST = 1e-6
# Margins of some rows of a name's judged keys.
Margins = Callable[[str, NDArray[np.intp]], Floats]


class LeftOut:
    """Half-spaces that are fitted to part of what was ``probed``, and the margins of ``judged`` keys to the nearest.

    Keys stay standardised and shrunk as all of them are, so that a fit is one system of as many equations as keys;
    it says as much of words that were not fitted as a discriminant of these keys alone.
    """

    def __init__(self, probed: Probed, judged: Mapping[str, Floats32]) -> None:
        assert probed.retained is not None
        self._members = probed.clusters.members
        self._kernels = [
            _Kernel(Pair(probed.keys[rows], probed.retained, probed.dtype), judged) for rows in self._members
        ]

    def fitted(self, probe: NDArray[np.bool_], against: NDArray[np.bool_]) -> Margins:
        """Fitted to those of the skill's keys [n] and of the retained ones [m] that are marked."""
        own = [kernel.fitted(probe[rows], against) for kernel, rows in zip(self._kernels, self._members, strict=True)]
        return lambda name, rows: np.min([margins(name, rows) for margins in own if margins is not None], axis=0)


class _Kernel:
    """Products of both classes' keys with each other and with judged ones, in units in which S is identity + R^T R."""

    def __init__(self, pair: Pair, judged: Mapping[str, Floats32]) -> None:
        shrinkages = shrinkages_of(pair)
        self._skill = len(pair.skill)
        self._kept = np.repeat([1 - one.share for one in shrinkages], [self._skill, len(pair.retained)])
        self._products = np.zeros((pair.rows, pair.rows), dtype=pair.dtype)
        self._judged = {name: np.zeros((len(keys), pair.rows), dtype=pair.dtype) for name, keys in judged.items()}
        for part in pair.parts():
            _, diagonal = part.within(shrinkages)
            # Of a covariance that is not shrunk nothing is left to be the unit.
            root = np.sqrt(np.maximum(diagonal, _LEAST))
            keys = np.concatenate([part.centred[0] + part.difference, part.centred[1]]) / root
            self._products += keys @ keys.T
            for name, own in judged.items():
                standardised = (own[:, part.columns].astype(pair.dtype) - part.mean) / part.deviation
                self._judged[name] += (standardised / root) @ keys.T

    def fitted(self, probe: NDArray[np.bool_], against: NDArray[np.bool_]) -> Margins | None:
        """The margins to the half-space of the marked keys; None without any of a class."""
        rows = np.flatnonzero(np.concatenate([probe, against]))
        skill, retained = int(probe.sum()), int(against.sum())
        if not skill or not retained:
            return None
        products = self._products[np.ix_(rows, rows)]

        def centred(values: Floats) -> Floats:
            return np.concatenate([own - own.mean(axis=0) for own in (values[:skill], values[skill:])])

        # The weight is a sum of the keys: the difference of means, less what S^-1 takes of it.
        difference = np.repeat([1 / skill, -1 / retained], [skill, retained]).astype(products.dtype)
        scale = np.sqrt(self._kept[rows] / len(rows)).astype(products.dtype)
        within = scale[:, None] * centred(centred(products).T) * scale + np.eye(len(rows), dtype=products.dtype)
        along = products @ difference
        weight = difference - centred(scale * solve(within, scale * centred(along), assume_a="pos"))
        spread, at_mean = spread_of(float(along @ weight)), float(products[:skill].mean(axis=0) @ weight)
        return lambda name, judged: (at_mean - self._judged[name][np.ix_(judged, rows)] @ weight) / spread
